//! Where a clip is on its way through the encoder or the decoder.

use super::layers::History;
use super::tiling::{Grid, Mosaic, Scale, Tiling};
use crate::error::{ModelError, Result};
use kernels::Tensor;

/// Where a clip is on its way through the encoder.
#[derive(Default)]
pub struct EncodeState(pub(super) Passage);

impl EncodeState {
    /// Encodes each picture in tiles.
    pub fn tiled(tiling: Tiling) -> Self {
        Self(Passage::tiled(tiling))
    }

    /// Latent frames encoded so far.
    pub fn frames(&self) -> usize {
        self.0.chunks
    }
}

/// Where a clip is on its way through the decoder.
#[derive(Default)]
pub struct DecodeState(pub(super) Passage);

impl DecodeState {
    /// Decodes each latent frame in tiles.
    pub fn tiled(tiling: Tiling) -> Self {
        Self(Passage::tiled(tiling))
    }

    /// Latent frames decoded so far.
    pub fn frames(&self) -> usize {
        self.0.chunks
    }
}

/// The chunks of one clip, in order, through one network.
#[derive(Default)]
pub(super) struct Passage {
    tiling: Option<Tiling>,
    /// Of each tile; all chunks have the same.
    histories: Vec<History>,
    /// Height and width of the chunks.
    size: Option<[usize; 2]>,
    chunks: usize,
}

impl Passage {
    fn tiled(tiling: Tiling) -> Self {
        Self { tiling: Some(tiling), ..Self::default() }
    }

    /// Runs the next chunk x [f, h, w, c], tile by tile.
    ///
    /// `picture` is the pictures' height and width; a pixel of x is `pixel` of what tiles are measured in, `factor` the
    /// unit that they must divide into.
    pub(super) fn next(
        &mut self,
        x: &Tensor,
        picture: [usize; 2],
        pixel: usize,
        factor: usize,
        scale: Scale,
        run: impl Fn(&Tensor, &mut History) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let size = [x.shape()[1], x.shape()[2]];
        if *self.size.get_or_insert(size) != size {
            return Err(ModelError::Input(format!("a chunk is {:?}, the ones before it {:?}", size, self.size)));
        }
        let grid = match self.tiling {
            Some(tiling) => {
                tiling.check(factor)?;
                let Tiling { tile_px, stride_px } = tiling;
                match picture.iter().any(|side| *side > tile_px) {
                    true => Grid::new(size, tile_px / pixel, stride_px / pixel, scale),
                    false => Grid::whole(size, scale),
                }
            }
            None => Grid::whole(size, scale),
        };
        self.histories.resize_with(grid.count(), History::default);
        let mut mosaic = Mosaic::new(grid);
        let mut whole = None;
        for (tile, history) in self.histories.iter_mut().enumerate() {
            whole = mosaic.add(&run(&grid.cut(x, tile)?, history)?)?;
        }
        self.chunks += 1;
        whole.ok_or_else(|| ModelError::Input("a picture without pixels".to_owned()))
    }
}
