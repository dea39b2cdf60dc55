/* A Vulkan layer that keeps buffers which a program destroys.
 *
 * The lavapipe of Mesa 22.3 looks at all descriptors of a set, also at those that the kernel does not use. llama.cpp has
 * twelve in each set and writes only those that the kernel uses, so others may name buffers that are gone, as Vulkan
 * allows. lavapipe then counts references in freed memory, and crashes. A kept buffer costs some hundred bytes; its memory
 * is freed as usual.
 */
#include <stdlib.h>
#include <string.h>
#include <vulkan/vk_layer.h>

static PFN_vkGetInstanceProcAddr next_of_instance;
static PFN_vkGetDeviceProcAddr next_of_device;

static VKAPI_ATTR void VKAPI_CALL keep_buffer(VkDevice device, VkBuffer buffer, const VkAllocationCallbacks *calls) {
    (void)device, (void)buffer, (void)calls;
}

/* The loader's link to the next layer or driver, which it put into the chain of what is created. */
static void *link_of(const void *chain, VkStructureType type) {
    for (const VkBaseInStructure *s = chain; s; s = s->pNext)
        if (s->sType == type && ((const VkLayerInstanceCreateInfo *)s)->function == VK_LAYER_LINK_INFO) return (void *)s;
    return NULL;
}

static VKAPI_ATTR VkResult VKAPI_CALL create_instance(
    const VkInstanceCreateInfo *wanted, const VkAllocationCallbacks *calls, VkInstance *made) {
    VkLayerInstanceCreateInfo *link = link_of(wanted->pNext, VK_STRUCTURE_TYPE_LOADER_INSTANCE_CREATE_INFO);
    if (!link) return VK_ERROR_INITIALIZATION_FAILED;
    next_of_instance = link->u.pLayerInfo->pfnNextGetInstanceProcAddr;
    link->u.pLayerInfo = link->u.pLayerInfo->pNext;
    return ((PFN_vkCreateInstance)next_of_instance(NULL, "vkCreateInstance"))(wanted, calls, made);
}

static VKAPI_ATTR VkResult VKAPI_CALL create_device(
    VkPhysicalDevice card, const VkDeviceCreateInfo *wanted, const VkAllocationCallbacks *calls, VkDevice *made) {
    VkLayerDeviceCreateInfo *link = link_of(wanted->pNext, VK_STRUCTURE_TYPE_LOADER_DEVICE_CREATE_INFO);
    if (!link) return VK_ERROR_INITIALIZATION_FAILED;
    PFN_vkGetInstanceProcAddr next = link->u.pLayerInfo->pfnNextGetInstanceProcAddr;
    next_of_device = link->u.pLayerInfo->pfnNextGetDeviceProcAddr;
    link->u.pLayerInfo = link->u.pLayerInfo->pNext;
    return ((PFN_vkCreateDevice)next(NULL, "vkCreateDevice"))(card, wanted, calls, made);
}

static PFN_vkVoidFunction VKAPI_CALL device_function(VkDevice device, const char *name) {
    if (!strcmp(name, "vkDestroyBuffer")) return (PFN_vkVoidFunction)keep_buffer;
    if (!strcmp(name, "vkGetDeviceProcAddr")) return (PFN_vkVoidFunction)device_function;
    return next_of_device(device, name);
}

static PFN_vkVoidFunction VKAPI_CALL instance_function(VkInstance instance, const char *name) {
    if (!strcmp(name, "vkCreateInstance")) return (PFN_vkVoidFunction)create_instance;
    if (!strcmp(name, "vkCreateDevice")) return (PFN_vkVoidFunction)create_device;
    if (!strcmp(name, "vkDestroyBuffer")) return (PFN_vkVoidFunction)keep_buffer;
    if (!strcmp(name, "vkGetDeviceProcAddr")) return (PFN_vkVoidFunction)device_function;
    if (!strcmp(name, "vkGetInstanceProcAddr")) return (PFN_vkVoidFunction)instance_function;
    return next_of_instance ? next_of_instance(instance, name) : NULL;
}

VKAPI_ATTR VkResult VKAPI_CALL vkNegotiateLoaderLayerInterfaceVersion(VkNegotiateLayerInterface *layer) {
    layer->loaderLayerInterfaceVersion = 2;
    layer->pfnGetInstanceProcAddr = instance_function;
    layer->pfnGetDeviceProcAddr = device_function;
    layer->pfnGetPhysicalDeviceProcAddr = NULL;
    return VK_SUCCESS;
}
