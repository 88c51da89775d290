"""Decoders of the library transformers with the weights of a GGUF file, to compare with."""

from pathlib import Path
from typing import Any

import numpy as np

from jattn.models.language_model import LanguageModelConfig
from jattn.pretrained.weights import open_weights


def decoder_of_transformers(path: Path, config: LanguageModelConfig) -> Any:
    """In float32, by the names that llama.cpp's package gguf has for their tensors.

    Raises:
      ModuleNotFoundError: torch, transformers or gguf is not installed.
    """
    import torch  # pyright: ignore[reportMissingImports]
    import transformers  # pyright: ignore[reportMissingImports]
    from gguf import MODEL_ARCH, get_tensor_name_map

    gemma = config.query_key_norms
    sizes: dict[str, Any] = {
        "vocab_size": config.vocabulary,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.hidden,
        "rms_norm_eps": config.norm_epsilon,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    if gemma:
        bases = {"sliding_attention": config.rotary_bases[0], "full_attention": config.rotary_bases[-1]}
        sizes["rope_parameters"] = {kind: {"rope_type": "default", "rope_theta": base} for kind, base in bases.items()}
        sizes |= {"sliding_window": config.windows[0], "query_pre_attn_scalar": config.head_dim}
        peer: Any = transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**sizes))
    else:
        sizes["rope_parameters"] = {"rope_type": "default", "rope_theta": config.rotary_bases[0]}
        peer = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))
    tensors = open_weights(path).tensors
    names = get_tensor_name_map(MODEL_ARCH.GEMMA3 if gemma else MODEL_ARCH.LLAMA, config.layers)
    state = {}
    for name in peer.state_dict():
        if name == "lm_head.weight":
            continue
        tensor = np.array(tensors[str(names.get_name(name, (".weight",)))])
        if gemma and "norm" in name:
            tensor -= 1
        if not gemma and name.endswith(("q_proj.weight", "k_proj.weight")):  # of pairs, side by side, to halves
            pairs = tensor.reshape(-1, sizes["head_dim"] // 2, 2, config.width)
            tensor = pairs.swapaxes(1, 2).reshape(tensor.shape)
        state[name] = torch.from_numpy(np.ascontiguousarray(tensor))
    peer.load_state_dict(state, strict=False)
    peer.tie_weights()
    return peer.eval()
