"""The network: three stages, where it attends, how time enters, what masked text can do."""

import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel

from dalle3lib import unet

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return unet.build((16, 32, 32), text_width=24).eval()


def inputs(batch: int = 2, tokens: int = 5, width: int = 24):
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(batch, 4, 8, 8, generator=generator)
    states = torch.randn(batch, tokens, width, generator=generator)
    return z, torch.tensor([100.0, 900.0])[:batch], states


def attention(part) -> int:
    """How many modules of a part of the network attend to anything."""
    return sum(isinstance(m, (Transformer2DModel, BasicTransformerBlock)) for m in part.modules())


def test_the_first_stage_is_convolutional_and_the_others_attend(model):
    assert len(model.down_blocks) == len(model.up_blocks) == 3
    down, up = map(list, (model.down_blocks, model.up_blocks))
    assert attention(down[0]) == attention(up[2]) == 0  # at full resolution
    assert "attn" not in " ".join(name for name, _ in down[0].named_modules())
    for part in (down[1], down[2], model.mid_block, up[0], up[1]):
        assert attention(part) > 0
    for module in model.modules():
        if isinstance(module, BasicTransformerBlock):
            assert module.attn2.to_k.in_features == 24  # keys come from the text


def test_time_enters_every_block_as_scale_and_shift(model):
    blocks = [m for m in model.modules() if isinstance(m, ResnetBlock2D)]
    assert len(blocks) == 3 + 2 + 3 * 2  # down, middle, up
    for block in blocks:
        assert block.time_embedding_norm == "scale_shift"
        assert block.time_emb_proj.out_features == 2 * block.out_channels
        assert isinstance(block.norm1, torch.nn.GroupNorm)


@torch.no_grad()
def test_shapes(model):
    z, t, states = inputs()
    assert model(z, t, states).sample.shape == z.shape
    larger = torch.randn(1, 4, 16, 16)
    assert model(larger, t[:1], states[:1]).sample.shape == larger.shape


@torch.no_grad()
def test_time_and_text_matter(model):
    z, t, states = inputs()
    base = model(z, t, states).sample
    assert not torch.allclose(base, model(z, t + 50, states).sample, atol=1e-4)
    assert not torch.allclose(base, model(z, t, states.flip(2)).sample, atol=1e-5)


@torch.no_grad()
def test_masked_text_has_no_influence(model):
    z, t, states = inputs()
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    masked = model(z, t, states, encoder_attention_mask=mask).sample
    other = states.clone()
    other[1, 2:] = 10.0
    assert torch.allclose(masked, model(z, t, other, encoder_attention_mask=mask).sample, atol=1e-5)
    shorter = model(z[1:], t[1:], states[1:, :2], encoder_attention_mask=mask[1:, :2]).sample
    assert torch.allclose(masked[1:], shorter, atol=1e-4)
    other[1, 0] = -other[1, 0]
    changed = model(z, t, other, encoder_attention_mask=mask).sample
    assert not torch.allclose(masked[1], changed[1], atol=1e-5)
    assert torch.allclose(masked[0], changed[0], atol=1e-5)


def test_the_default_network_has_about_two_million_weights():
    model = unet.build()
    assert model.config.sample_size == 8 and model.config.cross_attention_dim == 128
    assert 1e6 < sum(p.numel() for p in model.parameters()) < 3e6
    widths = {m.to_q.out_features // m.heads for m in model.modules() if hasattr(m, "to_q")}
    assert widths == {32}  # of each head


def test_every_weight_is_used(model):
    z, t, states = inputs()
    model.zero_grad()
    model(z, t, states).sample.square().mean().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
