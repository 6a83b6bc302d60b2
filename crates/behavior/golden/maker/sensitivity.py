"""How much each way of being wrong shows in the logits, measured with transformers.

A saboteur (an engine that is wrong on purpose) can only be caught by a case on which its fault shows. These numbers
say by how much, and the script refuses a model on which one of them is too small.
"""

import torch

from .pictures import Picture
from .reference import Prompt, Reference

# Fifty times the tolerance of the suite.
VISIBLE = 0.1


def away(one: torch.Tensor, other: torch.Tensor) -> float:
    """Largest difference between two rows of logits."""
    return (one - other).abs().max().item()


def linear_caches(cache):
    return [layer for layer in cache.layers if getattr(layer, "recurrent_states", None) is not None]


def attention_caches(cache):
    return [layer for layer in cache.layers if getattr(layer, "keys", None) is not None]


def zero(value) -> None:
    """States are kept as a tensor, or as several in a list or dictionary."""
    if isinstance(value, torch.Tensor):
        value.zero_()
    else:
        for part in value.values() if isinstance(value, dict) else value:
            if part is not None:
                zero(part)


def lose_recurrent(cache):
    layers = linear_caches(cache)
    assert layers
    for layer in layers:
        zero(layer.recurrent_states)


def lose_convolution(cache):
    layers = linear_caches(cache)
    assert layers
    for layer in layers:
        zero(layer.conv_states)


def lose_attention(cache):
    layers = attention_caches(cache)
    assert layers
    for layer in layers:
        layer.keys.zero_()
        layer.values.zero_()


def of_text(reference: Reference, prompt: Prompt) -> dict[str, float]:
    """Faults on a long text, at its last position."""
    n = len(prompt.tokens)
    half = n // 2
    right = reference.logits(prompt)
    last = right[-1]
    positions = reference.positions(prompt)

    early = list(prompt.tokens)
    early[:16] = reversed(early[:16])
    first = [(prompt.tokens[0] + 1) % 256, *prompt.tokens[1:]]
    jump = positions.clone()
    jump[:, half:] += 32
    late = positions.clone()
    late[:, -1] += 8

    def spoiled(edit, at):
        return reference.stepwise(prompt, edit, at)

    gone = spoiled(lose_convolution, n - 1)
    return {
        "first_16_tokens_reversed": away(last, reference.logits(Prompt(early, []))[-1]),
        "first_token_changed": away(last, reference.logits(Prompt(first, []))[-1]),
        "second_half_alone": away(last, reference.logits(Prompt(prompt.tokens[half:], []))[-1]),
        "recurrent_states_lost_half_way": away(last, spoiled(lose_recurrent, half)[-1]),
        "convolution_states_lost_before_the_last_token": away(last, gone[-1]),
        "attention_past_zeroed_half_way": away(last, spoiled(lose_attention, half)[-1]),
        "positions_of_the_second_half_32_further": away(last, reference.logits(prompt, jump)[-1]),
        "position_of_the_last_token_8_further": away(last, reference.logits(prompt, late)[-1]),
        "all_positions_zero": away(last, reference.logits(prompt, positions * 0)[-1]),
    }


def invisible(reference: Reference, prompt: Prompt) -> dict[str, float]:
    """What does not show, because rotary positions are relative: a shift of all positions by the same amount."""
    positions = reference.positions(prompt)
    return {"all_positions_32_further": away(reference.logits(prompt)[-1], reference.logits(prompt, positions + 32)[-1])}


def of_image(reference: Reference, prompt: Prompt, other: Picture) -> dict[str, float]:
    """Faults around the first image of a prompt, at the last position, which comes after it."""
    image, rest = prompt.images[0], prompt.images[1:]
    last = reference.logits(prompt)[-1]
    flat = torch.arange(len(prompt.tokens)).expand(3, -1)
    blank = Picture("blank", image.grid, torch.zeros_like(image.patches))
    turned = Picture("turned", image.grid, image.patches.flip(0))
    assert other.grid == image.grid
    dropped = [t for t in prompt.tokens if t != reference.image_token]
    return {
        "images_dropped": away(last, reference.logits(Prompt(dropped, []))[-1]),
        "image_blank": away(last, reference.logits(Prompt(prompt.tokens, [blank, *rest]))[-1]),
        "other_image": away(last, reference.logits(Prompt(prompt.tokens, [other, *rest]))[-1]),
        "patches_in_reverse_order": away(last, reference.logits(Prompt(prompt.tokens, [turned, *rest]))[-1]),
        "positions_counted_one_by_one": away(last, reference.logits(prompt, flat)[-1]),
    }
