"""The network: its configuration, its first weights, and a fast training forward.

The parameters are those of transformers' own module (`Qwen3_5ForConditionalGeneration`), so saving
needs no conversion. The forward pass here is written for training on a CPU: several conversations
are packed into one row, and the gated delta rule runs as one chunk. `check_net.py` holds its logits
equal to transformers'.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration
from transformers.models.qwen3_5.modeling_qwen3_5 import apply_rotary_pos_emb, rotate_half
from transformers.vision_utils import get_vision_interpolation_indices_and_weights, get_vision_position_ids


def config(codec):
    i = codec.tk.token_to_id
    text = dict(
        vocab_size=codec.tk.get_vocab_size(), hidden_size=256, intermediate_size=256, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, head_dim=64, hidden_act="silu", max_position_embeddings=4096,
        rms_norm_eps=1e-6, tie_word_embeddings=True, attention_bias=False, attn_output_gate=True,
        rope_parameters=dict(mrope_interleaved=True, mrope_section=[3, 3, 2], rope_type="default", rope_theta=10000, partial_rotary_factor=0.25),
        linear_conv_kernel_dim=4, linear_key_head_dim=128, linear_value_head_dim=128, linear_num_key_heads=1, linear_num_value_heads=2,
        full_attention_interval=4, mtp_num_hidden_layers=1, mamba_ssm_dtype="float32",
        bos_token_id=None, eos_token_id=i("<|im_end|>"), pad_token_id=i("<|endoftext|>"),
    )
    vision = dict(
        depth=2, hidden_size=128, hidden_act="gelu_pytorch_tanh", intermediate_size=256, num_heads=4, in_channels=3, patch_size=16,
        spatial_merge_size=2, temporal_patch_size=2, out_hidden_size=256, num_position_embeddings=36, deepstack_visual_indexes=[],
    )
    return Qwen3_5Config(
        text_config=text, vision_config=vision, image_token_id=i("<|image_pad|>"), video_token_id=i("<|video_pad|>"),
        vision_start_token_id=i("<|vision_start|>"), vision_end_token_id=i("<|vision_end|>"), tie_word_embeddings=True,
    )


@torch.no_grad()
def init(module, seed):
    """Seeded first weights, equal on every machine (one generator, parameters by name order)."""
    g = torch.Generator().manual_seed(seed)
    for n, p in module.named_parameters():
        if n.endswith("A_log"):
            p.copy_(torch.empty(p.shape).uniform_(0.5, 4.0, generator=g).log())
        elif n.endswith("dt_bias"):
            dt = torch.exp(torch.empty(p.shape).uniform_(math.log(1e-3), math.log(1e-1), generator=g))
            p.copy_(dt + torch.log(-torch.expm1(-dt)))
        elif "conv1d" in n:
            p.copy_(torch.randn(p.shape, generator=g) * 0.3)
            p[:, :, -1] += 0.7
        elif n.endswith("embed_tokens.weight"):
            p.copy_(torch.randn(p.shape, generator=g) * 0.05)
        elif "pos_embed" in n:
            p.copy_(torch.randn(p.shape, generator=g) * 0.3)
        elif "norm" in n or n.endswith("bias"):
            pass  # transformers' own: zeros, or ones where the norm is not zero-centred
        elif p.dim() == 5:
            p.copy_(torch.randn(p.shape, generator=g) / math.sqrt(p[0].numel()) * 1.5)
        elif p.dim() == 2:
            s = 1 / math.sqrt(p.shape[1])
            if n.endswith(("out_proj.weight", "o_proj.weight", "down_proj.weight", "attn.proj.weight", "linear_fc2.weight")) and "merger" not in n:
                s *= 0.5
            p.copy_(torch.randn(p.shape, generator=g) * s)
    return module


def build(codec, seed=0):
    torch.manual_seed(seed)
    m = Qwen3_5ForConditionalGeneration(config(codec)).float()
    m.tie_weights()
    init(m, seed)
    m.tie_weights()
    return m


def parameters(*modules):
    return sum(p.numel() for p in {id(p): p for m in modules for p in m.parameters()}.values())


# --- vision ---------------------------------------------------------------------------------------


def vision_constants(vis, h, w):
    """What depends on the grid (in patches) alone: position interpolation and rotary tables."""
    g = torch.tensor([[1, h, w]])
    idx, wt = get_vision_interpolation_indices_and_weights(g, num_grid_per_side=vis.num_grid_per_side, mode="bilinear", align_corners=True, spatial_merge_size=2, kwargs={})
    cos, sin = vis.rotary_pos_emb(torch.zeros(1), get_vision_position_ids(g, 2, kwargs={}))
    return idx, wt, cos, sin


def vision(vis, px, cst):
    """`px`: [pictures, patches, 768] (one frame; both frames of the kernel see the same picture)."""
    idx, wt, cos, sin = cst
    n, p, _ = px.shape
    d, heads = vis.config.hidden_size, vis.config.num_heads
    kernel = vis.patch_embed.proj.weight.sum(2).reshape(d, -1)
    x = F.linear(px, kernel, vis.patch_embed.proj.bias) + (vis.pos_embed(idx) * wt[:, :, None]).sum(1)
    for b in vis.blocks:
        q, k, v = b.attn.qkv(b.norm1(x)).reshape(n, p, 3, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = q * cos + rotate_half(q) * sin, k * cos + rotate_half(k) * sin
        o = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v).transpose(1, 2).reshape(n, p, d)
        x = x + b.attn.proj(o)
        x = x + b.mlp(b.norm2(x))
    return vis.merger(x.reshape(n * p, d)).reshape(n, p // 4, -1)


# --- text -----------------------------------------------------------------------------------------


def rms(x, w, eps=1e-6):
    return F.rms_norm(x, (x.shape[-1],), 1 + w, eps)


def delta_net(m, x, past, doc):
    """Gated delta net over packed rows. `past[b, i, j]`: j ≤ i in the same conversation; `doc`: conversation of each token."""
    n, length, _ = x.shape
    hk, hv, dk, dv = m.num_k_heads, m.num_v_heads, m.head_k_dim, m.head_v_dim
    u = m.in_proj_qkv(x).float()
    w = m.conv1d.weight.squeeze(1)
    y = u * w[:, 3]
    for back in (1, 2, 3):
        same = (doc[:, back:] == doc[:, :-back]).unsqueeze(-1)
        y = y + F.pad(u[:, :-back] * same * w[:, 3 - back], (0, 0, back, 0))
    q, k, v = F.silu(y).split([m.key_dim, m.key_dim, m.value_dim], -1)
    q, k = (t.reshape(n, length, hk, dk).transpose(1, 2) for t in (q, k))
    v = v.reshape(n, length, hv, dv).transpose(1, 2)
    q = q * (torch.rsqrt((q * q).sum(-1, keepdim=True) + 1e-6) * dk**-0.5)
    k = k * torch.rsqrt((k * k).sum(-1, keepdim=True) + 1e-6)
    beta = m.in_proj_b(x).float().sigmoid().transpose(1, 2).unsqueeze(-1)
    g = (-m.A_log.exp() * F.softplus(m.in_proj_a(x).float() + m.dt_bias)).transpose(1, 2)
    c = g.cumsum(-1)
    decay = (c.unsqueeze(-1) - c.unsqueeze(-2)).masked_fill(~past.unsqueeze(1), float("-inf")).exp()
    kk, qk = k @ k.transpose(-1, -2), q @ k.transpose(-1, -2)
    if hv > hk:
        kk, qk = kk.repeat_interleave(hv // hk, 1), qk.repeat_interleave(hv // hk, 1)
    delta = torch.linalg.solve_triangular(kk * decay * beta, v * beta, upper=False, unitriangular=True)
    o = ((qk * decay) @ delta).transpose(1, 2)
    z = m.in_proj_z(x).reshape(n, length, hv, dv)
    o = F.rms_norm(o, (dv,), m.norm.weight, 1e-6) * F.silu(z.float())
    return m.out_proj(o.reshape(n, length, -1))


def attention(m, x, cos, sin, past):
    n, length, _ = x.shape
    d = m.head_dim
    q, gate = m.q_proj(x).view(n, length, -1, 2 * d).chunk(2, -1)
    gate = gate.reshape(n, length, -1)
    q = rms(q.float(), m.q_norm.weight).transpose(1, 2)
    k = rms(m.k_proj(x).view(n, length, -1, d).float(), m.k_norm.weight).transpose(1, 2)
    v = m.v_proj(x).view(n, length, -1, d).transpose(1, 2)
    q, k = apply_rotary_pos_emb(q, k, cos, sin)
    rep = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(rep, 1), v.repeat_interleave(rep, 1)
    o = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, attn_mask=past.unsqueeze(1))
    return m.o_proj(o.transpose(1, 2).reshape(n, length, -1) * torch.sigmoid(gate))


def rope(lm, pos):
    return lm.rotary_emb(torch.zeros(1), pos)


def trunk(lm, x, cos, sin, past, doc):
    """The text model from embeddings to the final norm."""
    for layer in lm.layers:
        h = rms(x, layer.input_layernorm.weight)
        if hasattr(layer, "linear_attn"):
            x = x + delta_net(layer.linear_attn, h, past, doc)
        else:
            x = x + attention(layer.self_attn, h, cos, sin, past)
        x = x + layer.mlp(rms(x, layer.post_attention_layernorm.weight))
    return rms(x, lm.norm.weight)


def same_conversation(doc):
    """`past[b, i, j]`: token j is at or before i, in the same conversation."""
    n = doc.shape[1]
    return (doc.unsqueeze(2) == doc.unsqueeze(1)) & torch.ones(n, n, dtype=torch.bool).tril()


def embed(lm, ids, pictures=None, image_id=None):
    x = lm.embed_tokens(ids)
    if pictures is not None:
        x = x.masked_scatter((ids == image_id).unsqueeze(-1), pictures.to(x.dtype))
    return x


# --- multi-token prediction -----------------------------------------------------------------------


class _Attention(nn.Module):
    def __init__(s, c):
        super().__init__()
        d, h, kv = c.head_dim, c.num_attention_heads, c.num_key_value_heads
        s.head_dim = d
        s.q_proj = nn.Linear(c.hidden_size, h * 2 * d, bias=False)
        s.k_proj = nn.Linear(c.hidden_size, kv * d, bias=False)
        s.v_proj = nn.Linear(c.hidden_size, kv * d, bias=False)
        s.o_proj = nn.Linear(h * d, c.hidden_size, bias=False)
        s.q_norm, s.k_norm = _Norm(d), _Norm(d)


class _Norm(nn.Module):
    def __init__(s, n):
        super().__init__()
        s.weight = nn.Parameter(torch.zeros(n))


class _Mlp(nn.Module):
    def __init__(s, c):
        super().__init__()
        s.gate_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        s.up_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        s.down_proj = nn.Linear(c.intermediate_size, c.hidden_size, bias=False)

    def forward(s, x):
        return s.down_proj(F.silu(s.gate_proj(x)) * s.up_proj(x))


class _Layer(nn.Module):
    def __init__(s, c):
        super().__init__()
        s.self_attn, s.mlp = _Attention(c), _Mlp(c)
        s.input_layernorm, s.post_attention_layernorm = _Norm(c.hidden_size), _Norm(c.hidden_size)


class Mtp(nn.Module):
    """The multi-token prediction layer: from the trunk's (final-normed) hidden state at t and the
    embedding of token t+1 to token t+2. transformers has none; names and order are the family's."""

    def __init__(s, c):
        super().__init__()
        s.pre_fc_norm_embedding, s.pre_fc_norm_hidden, s.norm = _Norm(c.hidden_size), _Norm(c.hidden_size), _Norm(c.hidden_size)
        s.fc = nn.Linear(2 * c.hidden_size, c.hidden_size, bias=False)
        s.layers = nn.ModuleList([_Layer(c)])

    def forward(s, hidden, next_embedding, cos, sin, past):
        x = s.fc(torch.cat([rms(next_embedding, s.pre_fc_norm_embedding.weight), rms(hidden, s.pre_fc_norm_hidden.weight)], -1))
        for layer in s.layers:
            x = x + attention(layer.self_attn, rms(x, layer.input_layernorm.weight), cos, sin, past)
            x = x + layer.mlp(rms(x, layer.post_attention_layernorm.weight))
        return rms(x, s.norm.weight)
