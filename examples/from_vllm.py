"""The script that Xiaomi publishes for MiMo with vLLM; only its import line is another."""

from mimo_gguf import LLM, SamplingParams  # from vllm import LLM, SamplingParams

model_path = "XiaomiMiMo/MiMo-7B-RL"
llm = LLM(
    model=model_path,
    trust_remote_code=True,
    num_speculative_tokens=1,
    disable_log_stats=False,
)
sampling_params = SamplingParams(temperature=0.6)

conversation = [
    {
        "role": "system",
        "content": "",
    },
    {
        "role": "user",
        "content": "Write an essay about the importance of higher education.",
    },
]

outputs = llm.chat(conversation, sampling_params=sampling_params, use_tqdm=False)

for output in outputs:
    prompt = output.prompt
    generated_text = output.outputs[0].text
    print(f"Prompt: {prompt!r}, Generated text: {generated_text!r}")

print("=" * 80)
