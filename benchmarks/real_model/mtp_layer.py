"""One MTP layer of MiMo's form in torch, 576 wide: how it begins, what it computes, and its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F

from benchmarks.real_model.geometry import FFN, ORIGINAL
from benchmarks.real_model.original import Array
from benchmarks.real_model.states import Sums
from benchmarks.real_model.trunk import WIDTH, Block, Trunk, rms, run_block
from benchmarks.real_model.widening import GROUP, MTP

RIDGE = 1e-2  # of the mean of the diagonal
LEAST_GAIN, MOST_GAIN = 0.3, 3.0


@dataclass(slots=True)
class MtpLayer:
    """The layer's weights.

    Attributes:
        hidden_gain, token_gain: [576], of the norms of the trunk's state and of the token's embedding.
        join: [576, 1152], from both to the state that enters the block; the trunk's state comes first.
        block: a block like the trunk's.
        ratio: [192], the last norm's gains divided by the trunk's, one for each three dimensions.
        trunk_gain: [576], gains of the trunk's final norm; they stay as they are.
    """

    hidden_gain: torch.Tensor
    token_gain: torch.Tensor
    join: torch.Tensor
    block: Block
    ratio: torch.Tensor
    trunk_gain: torch.Tensor

    def __call__(self, states: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
        """Normed states [batch, tokens, 576] that the trunk's head reads, float32.

        Args:
            states: [batch, tokens, 576], the trunk's, before the final norm, of the token before.
            embeddings: [batch, tokens, 576], of the token itself.
        """
        joined = torch.cat((rms(states, self.hidden_gain), rms(embeddings, self.token_gain)), -1)
        after = run_block(self.block, F.linear(joined, self.join))
        return rms(after, self.trunk_gain * self.ratio.repeat_interleave(GROUP))

    def trainable(self) -> list[torch.Tensor]:
        """All weights but the trunk's gains."""
        own = [self.hidden_gain, self.token_gain, self.join, self.ratio]
        return own + [getattr(self.block, field.name) for field in fields(Block)]


def first_guess(trunk: Trunk, sums: Sums) -> MtpLayer:
    """The trunk's last block, behind the linear map that best guesses what enters it one token later."""
    size = sums.inputs.diagonal().mean()
    solved = torch.linalg.solve(sums.inputs + RIDGE * size * torch.eye(2 * WIDTH, dtype=torch.float64), sums.outputs)
    join = solved.T.float()
    gains = []
    for half in join.chunk(2, 1):
        columns = half.pow(2).mean(0).sqrt() / half.pow(2).mean().sqrt()
        gains.append(columns.clamp(LEAST_GAIN, MOST_GAIN))  # the columns behind them are of like size then
    last = trunk.blocks[-1]
    block = Block(**{field.name: getattr(last, field.name).clone() for field in fields(Block)})
    ratio = torch.ones(WIDTH // GROUP)
    return MtpLayer(gains[0], gains[1], join / torch.cat(gains), block, ratio, trunk.gain.clone())


def read_layer(trunk: Trunk, tensors: Mapping[str, Array]) -> MtpLayer:
    """The layer of `layer_tensors`, to train it further."""
    own = {name: values for name, values in tensors.items() if name.startswith(MTP)}
    named = {name.removeprefix(MTP): torch.from_numpy(values).float() for name, values in own.items()}
    qkv = [f"self_attn.{name}_proj" for name in "qkv"]
    block = Block(
        qkv=torch.cat([named[f"{name}.weight"] for name in qkv]),
        bias=torch.cat([named[f"{name}.bias"] for name in qkv]),
        output=named["self_attn.o_proj.weight"],
        gate_up=torch.cat([named["mlp.gate_proj.weight"], named["mlp.up_proj.weight"]]),
        down=named["mlp.down_proj.weight"],
        attention_gain=named["input_layernorm.weight"],
        ffn_gain=named["post_attention_layernorm.weight"],
    )
    gains = named["hidden_layernorm.weight"], named["token_layernorm.weight"]
    return MtpLayer(*gains, named["input_proj.weight"], block, named["final_ratio"], trunk.gain.clone())


def layer_tensors(layer: MtpLayer) -> dict[str, torch.Tensor]:
    """The layer's tensors under MiMo's names, as bfloat16 (the last norm as `final_ratio`)."""
    block = layer.block
    query, key, value = block.qkv.split(ORIGINAL.qkv_rows)
    query_bias, key_bias, value_bias = block.bias.split(ORIGINAL.qkv_rows)
    gate, up = block.gate_up.split(FFN)
    named = {
        "hidden_layernorm.weight": layer.hidden_gain,
        "token_layernorm.weight": layer.token_gain,
        "input_proj.weight": layer.join,
        "final_ratio": layer.ratio,
        "input_layernorm.weight": block.attention_gain,
        "self_attn.q_proj.weight": query,
        "self_attn.q_proj.bias": query_bias,
        "self_attn.k_proj.weight": key,
        "self_attn.k_proj.bias": key_bias,
        "self_attn.v_proj.weight": value,
        "self_attn.v_proj.bias": value_bias,
        "self_attn.o_proj.weight": block.output,
        "post_attention_layernorm.weight": block.ffn_gain,
        "mlp.gate_proj.weight": gate,
        "mlp.up_proj.weight": up,
        "mlp.down_proj.weight": block.down,
    }
    return {MTP + name: tensor.detach().to(torch.bfloat16).contiguous() for name, tensor in named.items()}
