"""The picture of kept blocks."""

from matplotlib import image

from blocksparse_rnn.models.layers import GRULayer
from blocksparse_rnn.pruning.mask_pictures import draw_blocks


def test_a_matrix_with_more_blocks_than_pixels_fills_its_frame(tmp_path):
    """The ticks between a GRU's gates must not extend the axes beyond the picture."""
    draw_blocks(GRULayer(16, 512), {"all": ["weight_hh"]}, (4, 4), tmp_path / "masks.png")
    dark_HW = image.imread(tmp_path / "masks.png")[:, :, :3].max(axis=2) < 0.2
    column_H = dark_HW[:, dark_HW.sum(axis=0).argmax()]
    bottom = column_H.nonzero()[0].max()  # of the frame
    assert column_H[bottom - 100 : bottom + 1].all()
