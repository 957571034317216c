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

    /// Machine code for every architecture; when the program was built without the present sources' fatbin, a text instead
    /// that no driver takes.
    pub(super) fn image(self) -> &'static [u8] {
        FATBINS.iter().find(|(group, _)| *group == self.group()).map_or(NO_SOURCE, |(_, image)| image)
    }

    /// Why the driver did not take the image.
    pub(super) fn why_not_loaded(self, drivers_words: &str) -> String {
        why_not_loaded(self.group(), self.image(), drivers_words)
    }
}

fn why_not_loaded(group: &str, image: &[u8], drivers_words: &str) -> String {
    if image.starts_with(FATBIN_MAGIC) {
        format!("{group}.fatbin does not load: {drivers_words}")
    } else {
        format!("built without {group}.fatbin: run scripts/fatbins and build again")
    }
}

/// The image of a group that has no source file.
const NO_SOURCE: &[u8] = b"scripts/fatbins has no source of this module\0";

/// First bytes of every fatbin: 0xba55ed50.
const FATBIN_MAGIC: &[u8] = &[0x50, 0xed, 0x55, 0xba];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_that_was_never_compiled_names_the_command_that_compiles_it() {
        assert!(why_not_loaded("norm", NO_SOURCE, "invalid PTX").contains("run scripts/fatbins"));
        let compiled = why_not_loaded("norm", &[FATBIN_MAGIC, &[1, 0]].concat(), "no kernel image");
        assert_eq!(compiled, "norm.fatbin does not load: no kernel image");
    }
}
