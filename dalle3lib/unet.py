"""The denoising network (paper App. A): a three-stage U-Net on latents, conditioned on T5 states.

The first stage is purely convolutional; the next two cross-attend to the text ("xfnet"). The
timestep enters every block as a scale and a shift after group normalisation.
"""

from diffusers import UNet2DConditionModel


def build(
    channels: tuple[int, int, int] = (32, 64, 96),
    text_width: int = 128,
    latent_size: int = 8,
    layers: int = 1,
) -> UNet2DConditionModel:
    """An untrained U-Net: latents [B, 4, s, s], time, states [B, L, text_width] to [B, 4, s, s].

    ``channels`` are the widths at s, s/2 and s/4, multiples of 32; a stage has ``layers`` residual
    blocks on the way down, and one more on the way up.
    """
    return UNet2DConditionModel(
        sample_size=latent_size,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=channels,
        layers_per_block=layers,
        norm_num_groups=16,
        attention_head_dim=[c // 32 for c in channels],  # the number of heads, each 32 wide
        cross_attention_dim=text_width,
        resnet_time_scale_shift="scale_shift",
    )
