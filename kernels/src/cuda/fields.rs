//! The bytes of a struct that a kernel takes by value.

use crate::tensor::Tensor;

/// Fields in order, each at a multiple of its size, as C++ lays them out.
#[derive(Debug, Default)]
pub(crate) struct Fields(Vec<u8>);

impl Fields {
    /// An array of `count` pointers: to the tensors, which the caller knows to be on the device, and null behind them.
    pub(crate) fn tensors<'a>(self, count: usize, tensors: impl IntoIterator<Item = &'a Tensor>) -> Self {
        let address = |tensor: &Tensor| tensor.cuda().map_or(0, |cuda| cuda.buffer.pointer());
        self.array(count, 0u64, tensors.into_iter().map(address), u64::to_ne_bytes)
    }

    /// An array of `count` doubles, zeros behind the values.
    pub(crate) fn doubles(self, count: usize, values: impl IntoIterator<Item = f64>) -> Self {
        self.array(count, 0.0, values, f64::to_ne_bytes)
    }

    /// An array of `count` long longs, zeros behind the values.
    pub(crate) fn longs(self, count: usize, values: impl IntoIterator<Item = i64>) -> Self {
        self.array(count, 0, values, i64::to_ne_bytes)
    }

    /// An array of `count` floats, zeros behind the values.
    pub(crate) fn floats(self, count: usize, values: impl IntoIterator<Item = f32>) -> Self {
        self.array(count, 0.0, values, f32::to_ne_bytes)
    }

    /// An array of `count` ints, zeros behind the values.
    pub(crate) fn ints(self, count: usize, values: impl IntoIterator<Item = i32>) -> Self {
        self.array(count, 0, values, i32::to_ne_bytes)
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn array<T: Copy, const N: usize>(
        mut self,
        count: usize,
        rest: T,
        values: impl IntoIterator<Item = T>,
        bytes: fn(T) -> [u8; N],
    ) -> Self {
        self.0.resize(self.0.len().next_multiple_of(N), 0);
        let end = self.0.len() + count * N;
        let all = values.into_iter().chain(std::iter::repeat(rest)).take(count);
        self.0.extend(all.flat_map(bytes));
        debug_assert_eq!(self.0.len(), end);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_lie_where_a_struct_of_c_has_them() {
        #[repr(C)]
        struct Like {
            count: i32,
            weights: [f64; 2],
            kinds: [i32; 3],
        }
        let fields = Fields::default().ints(1, [3]).doubles(2, [1.5]).ints(3, [7, 8, 9]);
        let at = |offset: usize, len: usize| &fields.bytes()[offset..][..len];
        assert_eq!(at(std::mem::offset_of!(Like, weights), 8), 1.5f64.to_ne_bytes());
        assert_eq!(at(std::mem::offset_of!(Like, kinds) + 8, 4), 9i32.to_ne_bytes());
        assert_eq!(fields.bytes().len(), std::mem::offset_of!(Like, kinds) + 12);
    }
}
