//! Pictures in overlapping tiles, with diffusers' arithmetic (`enable_tiling`).
//!
//! Tiles start every stride; where one overlaps the tile above or to the left, the weights of the two rise and fall
//! linearly. A tile is blended downwards first, then to the right, against neighbours that are blended already, and gives
//! the result its first stride of rows and columns.

use crate::error::{ModelError, Result};
use kernels::{Tensor, slice_channels};
use std::ops::Range;

/// Sizes of tiles, in pixels of the picture, of both sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tiling {
    /// Side of a tile. Pictures of at most this width and height are done whole.
    pub tile_px: usize,
    /// Distance between the starts of neighbouring tiles; the rest of a tile overlaps.
    pub stride_px: usize,
}

impl Default for Tiling {
    fn default() -> Self {
        Self { tile_px: 256, stride_px: 192 }
    }
}

impl Tiling {
    pub(super) fn check(self, factor: usize) -> Result<()> {
        let Self { tile_px, stride_px } = self;
        let fits = tile_px.is_multiple_of(factor) && stride_px.is_multiple_of(factor);
        match fits && (1..=tile_px).contains(&stride_px) {
            true => Ok(()),
            false => Err(ModelError::Input(format!(
                "tiles of {tile_px} px every {stride_px} px: both must be multiples of {factor}, the stride in 1..={tile_px}"
            ))),
        }
    }
}

/// A number of result pixels for a number of input pixels: one of the two is 1.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scale {
    pub(super) up: usize,
    pub(super) down: usize,
}

impl Scale {
    fn of(self, pixels: usize) -> usize {
        pixels * self.up / self.down
    }
}

/// How pictures are cut into tiles: sizes in pixels of the input.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grid {
    /// Height and width of the input.
    size: [usize; 2],
    tile: usize,
    stride: usize,
    scale: Scale,
}

impl Grid {
    /// One tile that is the whole picture.
    pub(super) fn whole(size: [usize; 2], scale: Scale) -> Self {
        let side = size[0].max(size[1]);
        Self { size, tile: side, stride: side, scale }
    }

    pub(super) fn new(size: [usize; 2], tile: usize, stride: usize, scale: Scale) -> Self {
        Self { size, tile, stride, scale }
    }

    fn columns(&self) -> usize {
        self.size[1].div_ceil(self.stride)
    }

    /// Number of tiles.
    pub(super) fn count(&self) -> usize {
        self.size[0].div_ceil(self.stride) * self.columns()
    }

    /// Row and column of a tile, which are counted row by row.
    fn place(&self, tile: usize) -> [usize; 2] {
        [tile / self.columns(), tile % self.columns()]
    }

    /// The input [f, h, w, c] under a tile.
    pub(super) fn cut(&self, x: &Tensor, tile: usize) -> Result<Tensor> {
        let &[f, h, w, c] = x.shape() else { return Ok(x.clone()) };
        let place = self.place(tile);
        let [rows, columns] = [0, 1].map(|axis| -> Range<usize> {
            let start = place[axis] * self.stride;
            start..(start + self.tile).min(self.size[axis])
        });
        if (rows.len(), columns.len()) == (h, w) {
            return Ok(x.clone());
        }
        let x = slice_channels(&x.reshape(&[f, h * w * c])?, rows.start * w * c, rows.len() * w * c)?;
        let x = slice_channels(&x.reshape(&[f * rows.len(), w * c])?, columns.start * c, columns.len() * c)?;
        Ok(x.reshape(&[f, rows.len(), columns.len(), c])?)
    }
}

/// The result as its tiles come in, row by row.
pub(super) struct Mosaic {
    grid: Grid,
    /// Tiles so far.
    done: usize,
    /// The lower ends of the last row's tiles.
    above: Vec<Plane>,
    /// The right end of the last tile.
    left: Option<Plane>,
    result: Option<Plane>,
}

impl Mosaic {
    pub(super) fn new(grid: Grid) -> Self {
        Self { grid, done: 0, above: Vec::new(), left: None, result: None }
    }

    /// Takes the result [f, h, w, c] of the next tile; returns the whole after the last.
    pub(super) fn add(&mut self, tile: &Tensor) -> Result<Option<Tensor>> {
        if self.grid.count() == 1 {
            return Ok(Some(tile.clone()));
        }
        let mut tile = Plane::of(tile)?;
        let [row, column] = self.grid.place(self.done);
        let Grid { scale, tile: side, stride, size } = self.grid;
        let (overlap, stride) = (scale.of(side - stride), scale.of(stride));
        if row > 0 {
            tile.blend_below(&self.above[column], overlap);
        }
        if let Some(left) = self.left.as_ref().filter(|_| column > 0) {
            tile.blend_right_of(left, overlap);
        }
        let result =
            self.result.get_or_insert_with(|| Plane::zeros([tile.f, scale.of(size[0]), scale.of(size[1]), tile.c]));
        result.place(&tile, [row * stride, column * stride], stride);
        let ends = tile.cut(tile.h.saturating_sub(overlap)..tile.h, 0..tile.w);
        match self.above.get_mut(column) {
            Some(above) => *above = ends,
            None => self.above.push(ends),
        }
        self.left = Some(tile.cut(0..tile.h, tile.w.saturating_sub(overlap)..tile.w));
        self.done += 1;
        match self.done == self.grid.count() {
            true => self.result.take().map(Plane::into_tensor).transpose(),
            false => Ok(None),
        }
    }
}

/// A clip [f, h, w, c] whose values can be changed.
struct Plane {
    values: Vec<f32>,
    f: usize,
    h: usize,
    w: usize,
    c: usize,
}

impl Plane {
    fn of(x: &Tensor) -> Result<Self> {
        match *x.shape() {
            [f, h, w, c] => Ok(Self { values: x.to_vec_f32(), f, h, w, c }),
            _ => Err(ModelError::Input(format!("a tile is {:?}, needs [f, h, w, c]", x.shape()))),
        }
    }

    fn zeros([f, h, w, c]: [usize; 4]) -> Self {
        Self { values: vec![0.0; f * h * w * c], f, h, w, c }
    }

    fn into_tensor(self) -> Result<Tensor> {
        Ok(Tensor::from_vec(self.values, &[self.f, self.h, self.w, self.c])?)
    }

    /// Where the values of a part of a row lie.
    fn at(&self, frame: usize, row: usize, columns: Range<usize>) -> Range<usize> {
        let start = (frame * self.h + row) * self.w;
        (start + columns.start) * self.c..(start + columns.end) * self.c
    }

    /// The first `extent` rows, from the last ones of `above` to our own.
    fn blend_below(&mut self, above: &Self, extent: usize) {
        let extent = extent.min(above.h).min(self.h);
        for frame in 0..self.f {
            for row in 0..extent {
                let theirs = &above.values[above.at(frame, above.h - extent + row, 0..above.w)];
                let ours = self.at(frame, row, 0..self.w);
                mix(&mut self.values[ours], theirs, row as f32 / extent as f32);
            }
        }
    }

    /// The first `extent` columns, from the last ones of `left` to our own.
    fn blend_right_of(&mut self, left: &Self, extent: usize) {
        let extent = extent.min(left.w).min(self.w);
        for (frame, row) in (0..self.f).flat_map(|frame| (0..self.h).map(move |row| (frame, row))) {
            let theirs = &left.values[left.at(frame, row, left.w - extent..left.w)];
            let ours = self.at(frame, row, 0..extent);
            let pixels = self.values[ours].chunks_exact_mut(self.c).zip(theirs.chunks_exact(self.c));
            for (column, (ours, theirs)) in pixels.enumerate() {
                mix(ours, theirs, column as f32 / extent as f32);
            }
        }
    }

    /// Copies the first `side` rows and columns of `tile` to `[y, x]`.
    fn place(&mut self, tile: &Self, [y, x]: [usize; 2], side: usize) {
        let (rows, columns) = (side.min(tile.h), side.min(tile.w));
        for (frame, row) in (0..self.f).flat_map(|frame| (0..rows).map(move |row| (frame, row))) {
            let to = self.at(frame, y + row, x..x + columns);
            self.values[to].copy_from_slice(&tile.values[tile.at(frame, row, 0..columns)]);
        }
    }

    fn cut(&self, rows: Range<usize>, columns: Range<usize>) -> Self {
        let places = (0..self.f).flat_map(|frame| rows.clone().map(move |row| (frame, row)));
        let values = places.flat_map(|(frame, row)| &self.values[self.at(frame, row, columns.clone())]);
        Self { values: values.copied().collect(), f: self.f, h: rows.len(), w: columns.len(), c: self.c }
    }
}

/// `theirs` for weight 0, our own for weight 1.
fn mix(ours: &mut [f32], theirs: &[f32], weight: f32) {
    for (ours, theirs) in ours.iter_mut().zip(theirs) {
        *ours = theirs * (1.0 - weight) + *ours * weight;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernels::Dtype;

    const SAME: Scale = Scale { up: 1, down: 1 };

    fn counting(h: usize, w: usize) -> Tensor {
        Tensor::from_vec((0..2 * h * w).map(|i| i as f32).collect(), &[1, h, w, 2]).unwrap()
    }

    #[test]
    fn tiles_cut_from_a_picture_and_put_together_are_the_picture() {
        for (h, w, tile, stride) in [(7, 9, 4, 3), (8, 8, 4, 4), (5, 3, 8, 6), (9, 4, 5, 2), (6, 1, 4, 3)] {
            let (x, grid) = (counting(h, w), Grid::new([h, w], tile, stride, SAME));
            let mut mosaic = Mosaic::new(grid);
            let whole = (0..grid.count()).find_map(|i| mosaic.add(&grid.cut(&x, i).unwrap()).unwrap()).unwrap();
            assert_eq!(whole.shape(), x.shape());
            let error = whole.to_vec_f32().iter().zip(x.to_vec_f32()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(error < 1e-4, "{h}x{w} in tiles of {tile} every {stride}: {error}");
        }
    }

    #[test]
    fn an_overlap_rises_linearly_from_the_earlier_tile_to_the_later() {
        let grid = Grid::new([1, 6], 4, 2, SAME);
        let mut mosaic = Mosaic::new(grid);
        let flat = |value: f32, w: usize| Tensor::from_vec(vec![value; w], &[1, 1, w, 1]).unwrap();
        assert!(mosaic.add(&flat(0.0, 4)).unwrap().is_none());
        assert!(mosaic.add(&flat(1.0, 4)).unwrap().is_none());
        let whole = mosaic.add(&flat(3.0, 2)).unwrap().unwrap();
        assert_eq!(whole.to_vec_f32(), [0.0, 0.0, 0.0, 0.5, 1.0, 2.0]);
    }

    #[test]
    fn tiles_that_the_factor_does_not_divide_are_refused() {
        assert!(Tiling::default().check(16).is_ok());
        for (tile_px, stride_px) in [(250, 192), (256, 100), (256, 0), (256, 272)] {
            assert!(Tiling { tile_px, stride_px }.check(16).is_err(), "{tile_px} {stride_px}");
        }
        let whole = Grid::whole([3, 5], SAME);
        assert_eq!(
            (whole.count(), whole.cut(&Tensor::zeros(&[1, 3, 5, 2], Dtype::F32).unwrap(), 0).unwrap().shape()),
            (1, &[1, 3, 5, 2][..])
        );
    }
}
