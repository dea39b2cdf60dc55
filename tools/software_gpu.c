/* A Vulkan layer that makes Mesa's software GPU more like a card. Other devices it leaves alone.
 *
 * Memory. lavapipe says that all of its memory is free, whatever is allocated. Here all processes that have the layer share
 * one card: each writes what it has allocated into a slot of the file SOFTWARE_GPU_MEMORY, what the others have is gone,
 * and what goes beyond the heap is refused. A slot is valid as long as its process lives, because it holds a lock on it.
 *
 * Buffers that are destroyed are kept. The lavapipe of Mesa 22.3 looks at all descriptors of a set, also at those that the
 * kernel does not use. llama.cpp has twelve in each set and writes only those that the kernel uses, so others may name
 * buffers that are gone, as Vulkan allows. lavapipe then counts references in freed memory, and crashes. A kept buffer
 * costs some hundred bytes; its memory is freed as usual.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <vulkan/vk_layer.h>

enum { SLOTS = 256, BLOCKS = 1 << 16 };

static PFN_vkGetInstanceProcAddr next_of_instance;
static PFN_vkGetDeviceProcAddr next_of_device;
static PFN_vkGetPhysicalDeviceProperties next_properties;
static PFN_vkGetPhysicalDeviceMemoryProperties2 next_memory_properties;
static PFN_vkEnumerateDeviceExtensionProperties next_extensions;
static VkInstance instance;
static VkDevice counted; /* the device whose memory is counted; NULL if it is no software GPU */
static VkDeviceSize heap_bytes;

/* --- what each process has allocated --- */

static int book = -1, own_slot = -1;
static volatile uint64_t *used; /* by slot */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct {
    VkDeviceMemory memory;
    VkDeviceSize n_bytes;
} blocks[BLOCKS];

static struct flock slot_lock(int slot) {
    return (struct flock){.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = slot, .l_len = 1};
}

static int open_book(void) {
    const char *path = getenv("SOFTWARE_GPU_MEMORY");
    if (used) return 1;
    if (!path || (book = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600)) < 0) return 0;
    if (ftruncate(book, SLOTS * sizeof *used)) return 0;
    void *mapped = mmap(NULL, SLOTS * sizeof *used, PROT_READ | PROT_WRITE, MAP_SHARED, book, 0);
    if (mapped == MAP_FAILED) return 0;
    used = mapped;
    return 1;
}

static int have_slot(void) {
    for (int slot = 0; own_slot < 0 && slot < SLOTS; slot++) {
        struct flock wanted = slot_lock(slot);
        if (!fcntl(book, F_OFD_SETLK, &wanted)) used[own_slot = slot] = 0;
    }
    return own_slot >= 0;
}

static uint64_t used_by_others(void) {
    uint64_t sum = 0;
    for (int slot = 0; slot < SLOTS; slot++) {
        struct flock asked = slot_lock(slot);
        if (slot == own_slot || !used[slot] || fcntl(book, F_OFD_GETLK, &asked)) continue;
        if (asked.l_type != F_UNLCK) sum += used[slot];
    }
    return sum;
}

static int is_import(const VkMemoryAllocateInfo *wanted) { /* of the host's memory, which is no memory of the device */
    for (const VkBaseInStructure *s = wanted->pNext; s; s = s->pNext)
        if (s->sType == VK_STRUCTURE_TYPE_IMPORT_MEMORY_HOST_POINTER_INFO_EXT) return 1;
    return 0;
}

static void note(VkDeviceMemory memory, VkDeviceSize n_bytes) {
    for (int i = 0; i < BLOCKS; i++)
        if (!blocks[i].memory) {
            blocks[i].memory = memory, blocks[i].n_bytes = n_bytes;
            used[own_slot] += n_bytes;
            return;
        }
}

static VKAPI_ATTR VkResult VKAPI_CALL allocate_memory(
    VkDevice device, const VkMemoryAllocateInfo *wanted, const VkAllocationCallbacks *calls, VkDeviceMemory *made) {
    PFN_vkAllocateMemory next = (PFN_vkAllocateMemory)next_of_device(device, "vkAllocateMemory");
    if (device != counted || is_import(wanted)) return next(device, wanted, calls, made);
    pthread_mutex_lock(&lock);
    VkResult result = VK_ERROR_OUT_OF_DEVICE_MEMORY;
    if (have_slot() && used_by_others() + used[own_slot] + wanted->allocationSize <= heap_bytes) {
        result = next(device, wanted, calls, made);
        if (result == VK_SUCCESS) note(*made, wanted->allocationSize);
    }
    pthread_mutex_unlock(&lock);
    return result;
}

static VKAPI_ATTR void VKAPI_CALL free_memory(
    VkDevice device, VkDeviceMemory memory, const VkAllocationCallbacks *calls) {
    pthread_mutex_lock(&lock);
    for (int i = 0; memory && device == counted && i < BLOCKS; i++)
        if (blocks[i].memory == memory) {
            used[own_slot] -= blocks[i].n_bytes;
            blocks[i].memory = VK_NULL_HANDLE;
            break;
        }
    pthread_mutex_unlock(&lock);
    ((PFN_vkFreeMemory)next_of_device(device, "vkFreeMemory"))(device, memory, calls);
}

/* --- what is said about the device --- */

static int is_software(VkPhysicalDevice card) {
    VkPhysicalDeviceProperties properties;
    next_properties(card, &properties);
    return properties.deviceType == VK_PHYSICAL_DEVICE_TYPE_CPU;
}

static VKAPI_ATTR void VKAPI_CALL memory_properties(VkPhysicalDevice card, VkPhysicalDeviceMemoryProperties2 *asked) {
    next_memory_properties(card, asked);
    if (!is_software(card) || !open_book()) return;
    for (VkBaseOutStructure *s = asked->pNext; s; s = s->pNext)
        if (s->sType == VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_BUDGET_PROPERTIES_EXT) {
            VkPhysicalDeviceMemoryBudgetPropertiesEXT *budget = (void *)s;
            VkDeviceSize size = asked->memoryProperties.memoryHeaps[0].size, others = used_by_others();
            memset(budget->heapBudget, 0, sizeof budget->heapBudget);
            memset(budget->heapUsage, 0, sizeof budget->heapUsage);
            budget->heapBudget[0] = others < size ? size - others : 0;
            budget->heapUsage[0] = own_slot < 0 ? 0 : used[own_slot];
            if (budget->heapUsage[0] > budget->heapBudget[0]) budget->heapUsage[0] = budget->heapBudget[0];
        }
}

static VKAPI_ATTR VkResult VKAPI_CALL extensions(
    VkPhysicalDevice card, const char *layer, uint32_t *n, VkExtensionProperties *list) {
    uint32_t room = *n;
    VkResult result = next_extensions(card, layer, n, list);
    if (layer || result != VK_SUCCESS || !is_software(card) || !open_book()) return result;
    for (uint32_t i = 0; list && i < *n; i++)
        if (!strcmp(list[i].extensionName, VK_EXT_MEMORY_BUDGET_EXTENSION_NAME)) return result;
    if (list && *n == room) return VK_INCOMPLETE;
    if (list) list[*n] = (VkExtensionProperties){VK_EXT_MEMORY_BUDGET_EXTENSION_NAME, 1};
    *n += 1;
    return result;
}

static VKAPI_ATTR void VKAPI_CALL destroy_buffer(VkDevice device, VkBuffer buffer, const VkAllocationCallbacks *calls) {
    if (device != counted) ((PFN_vkDestroyBuffer)next_of_device(device, "vkDestroyBuffer"))(device, buffer, calls);
}

/* --- how the loader finds all this --- */

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
    VkResult result = ((PFN_vkCreateInstance)next_of_instance(NULL, "vkCreateInstance"))(wanted, calls, made);
    if (result != VK_SUCCESS) return result;
    instance = *made; /* asked later, the loader would name the functions of this layer again */
    next_properties = (PFN_vkGetPhysicalDeviceProperties)next_of_instance(*made, "vkGetPhysicalDeviceProperties");
    next_memory_properties = (PFN_vkGetPhysicalDeviceMemoryProperties2)next_of_instance(
        *made, "vkGetPhysicalDeviceMemoryProperties2");
    next_extensions = (PFN_vkEnumerateDeviceExtensionProperties)next_of_instance(
        *made, "vkEnumerateDeviceExtensionProperties");
    return result;
}

static VKAPI_ATTR VkResult VKAPI_CALL create_device(
    VkPhysicalDevice card, const VkDeviceCreateInfo *wanted, const VkAllocationCallbacks *calls, VkDevice *made) {
    VkLayerDeviceCreateInfo *link = link_of(wanted->pNext, VK_STRUCTURE_TYPE_LOADER_DEVICE_CREATE_INFO);
    if (!link) return VK_ERROR_INITIALIZATION_FAILED;
    PFN_vkGetInstanceProcAddr next = link->u.pLayerInfo->pfnNextGetInstanceProcAddr;
    next_of_device = link->u.pLayerInfo->pfnNextGetDeviceProcAddr;
    link->u.pLayerInfo = link->u.pLayerInfo->pNext;
    VkResult result = ((PFN_vkCreateDevice)next(instance, "vkCreateDevice"))(card, wanted, calls, made);
    if (result != VK_SUCCESS || !is_software(card) || !open_book()) return result;
    VkPhysicalDeviceMemoryProperties2 asked = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_PROPERTIES_2};
    memory_properties(card, &asked);
    heap_bytes = asked.memoryProperties.memoryHeaps[0].size;
    counted = *made;
    return result;
}

static PFN_vkVoidFunction VKAPI_CALL device_function(VkDevice device, const char *name);
static PFN_vkVoidFunction VKAPI_CALL instance_function(VkInstance given, const char *name);

static PFN_vkVoidFunction own_function(const char *name) {
    static const struct {
        const char *name;
        PFN_vkVoidFunction function;
    } own[] = {
        {"vkGetInstanceProcAddr", (PFN_vkVoidFunction)instance_function},
        {"vkGetDeviceProcAddr", (PFN_vkVoidFunction)device_function},
        {"vkCreateInstance", (PFN_vkVoidFunction)create_instance},
        {"vkCreateDevice", (PFN_vkVoidFunction)create_device},
        {"vkEnumerateDeviceExtensionProperties", (PFN_vkVoidFunction)extensions},
        {"vkGetPhysicalDeviceMemoryProperties2", (PFN_vkVoidFunction)memory_properties},
        {"vkGetPhysicalDeviceMemoryProperties2KHR", (PFN_vkVoidFunction)memory_properties},
        {"vkAllocateMemory", (PFN_vkVoidFunction)allocate_memory},
        {"vkFreeMemory", (PFN_vkVoidFunction)free_memory},
        {"vkDestroyBuffer", (PFN_vkVoidFunction)destroy_buffer},
    };
    for (size_t i = 0; i < sizeof own / sizeof *own; i++)
        if (!strcmp(name, own[i].name)) return own[i].function;
    return NULL;
}

static PFN_vkVoidFunction VKAPI_CALL device_function(VkDevice device, const char *name) {
    PFN_vkVoidFunction own = own_function(name);
    return own ? own : next_of_device(device, name);
}

static PFN_vkVoidFunction VKAPI_CALL instance_function(VkInstance given, const char *name) {
    PFN_vkVoidFunction own = own_function(name);
    return own || !next_of_instance ? own : next_of_instance(given, name);
}

VKAPI_ATTR VkResult VKAPI_CALL vkNegotiateLoaderLayerInterfaceVersion(VkNegotiateLayerInterface *layer) {
    layer->loaderLayerInterfaceVersion = 2;
    layer->pfnGetInstanceProcAddr = instance_function;
    layer->pfnGetDeviceProcAddr = device_function;
    layer->pfnGetPhysicalDeviceProcAddr = NULL;
    return VK_SUCCESS;
}
