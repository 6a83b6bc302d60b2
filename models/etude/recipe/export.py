"""Writes the model as a Hugging Face folder: bf16 weights (MTP layer included), configuration, tokenizer, processor."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

HERE = Path(__file__).resolve().parent.parent

#: 9 visual tokens at least (96×96), 12 at most (128×96): every square picture becomes 96×96, every 4:3 one 128×96
MIN_PIXELS, MAX_PIXELS = 96 * 96, 128 * 96


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def tensors(model, mtp):
    """Every tensor by its family name, in bf16 (A_log and the norms too, as the family stores them)."""
    out = {n: p for n, p in model.state_dict().items() if n != "lm_head.weight"}
    out.update({f"mtp.{n}": p for n, p in mtp.state_dict().items()})
    return {n: p.detach().to(torch.bfloat16).contiguous() for n, p in sorted(out.items())}


def folder(model, mtp, codec, tokenizer_file: Path, out: Path):
    out.mkdir(parents=True, exist_ok=True)
    config = model.config.to_dict()
    config["architectures"] = ["Qwen3_5ForConditionalGeneration"]
    config.pop("_name_or_path", None)
    config.pop("transformers_version", None)
    for c in (config, config["text_config"], config["vision_config"]):
        c["dtype"] = "bfloat16"
    write_json(out / "config.json", config)
    i = codec.tk.token_to_id
    write_json(out / "generation_config.json", {
        "do_sample": False, "eos_token_id": [i("<|im_end|>"), i("<|endoftext|>")], "pad_token_id": i("<|endoftext|>"), "max_new_tokens": 128,
    })
    shutil.copyfile(tokenizer_file, out / "tokenizer.json")
    template = (HERE / "chat_template.jinja").read_text()
    if out.resolve() != HERE:
        shutil.copyfile(HERE / "chat_template.jinja", out / "chat_template.jinja")
    added = json.loads(tokenizer_file.read_text())["added_tokens"]
    flags = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    write_json(out / "tokenizer_config.json", {
        "added_tokens_decoder": {str(t["id"]): {k: t[k] for k in flags} for t in added},
        "additional_special_tokens": [t["content"] for t in added if t["special"] and t["content"] != "<|endoftext|>"],
        "add_bos_token": False, "add_prefix_space": False, "bos_token": None, "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": None, "errors": "replace",
        "model_max_length": 4096, "split_special_tokens": False, "tokenizer_class": "Qwen2Tokenizer", "chat_template": template,
    })
    picture = {
        "size": {"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS}, "patch_size": 16, "temporal_patch_size": 2, "merge_size": 2,
        "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
        "do_resize": True, "do_convert_rgb": True, "resample": 3, "processor_class": "Qwen3VLProcessor",
    }
    write_json(out / "preprocessor_config.json", {**picture, "image_processor_type": "Qwen2VLImageProcessorFast"})
    write_json(out / "video_preprocessor_config.json", {**picture, "video_processor_type": "Qwen3VLVideoProcessor"})
    save_file(tensors(model, mtp), str(out / "model.safetensors"), metadata={"format": "pt"})
