//! The compiled kernels that the program carries.

/// A group of kernels: one source file in `kernels/cuda`, one fatbin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Module {
    Attention,
    AttentionHopper,
    Conv,
    Elementwise,
    Layout,
    Linear,
    Norm,
    Resample,
    Rope,
}

/// Written by the build script.
static FATBINS: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/fatbins.rs"));

impl Module {
    /// The name of the source file.
    pub(super) fn group(self) -> &'static str {
        match self {
            Self::Attention => "attention",
            Self::AttentionHopper => "attention_hopper",
            Self::Conv => "conv",
            Self::Elementwise => "elementwise",
            Self::Layout => "layout",
            Self::Linear => "linear",
            Self::Norm => "norm",
            Self::Resample => "resample",
            Self::Rope => "rope",
        }
    }

    /// Machine code for every architecture; empty when the program was built before `scripts/fatbins` had made it.
    pub(super) fn image(self) -> &'static [u8] {
        FATBINS.iter().find(|(group, _)| *group == self.group()).map_or(&[], |(_, image)| image)
    }
}
