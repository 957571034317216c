//! Which pictures a model takes in the place of key frames.

use crate::error::{StageError, StageResult};
use serde::Serialize;

/// Whether a picture at some place is of use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Taken {
    /// The model has no place for it.
    Refused,
    /// With it or without.
    Optional,
    /// The model makes nothing without it.
    Required,
}

/// What a model takes as its first key frame, as its last one, and in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct PicturesTaken {
    /// The first key frame.
    pub first: Taken,
    /// The last key frame.
    pub last: Taken,
    /// Any key frame between the two.
    pub between: Taken,
}

impl PicturesTaken {
    /// Text is all there is.
    pub const NONE: Self = Self { first: Taken::Refused, last: Taken::Refused, between: Taken::Refused };
    /// Any key frame may be given.
    pub const ANY: Self = Self { first: Taken::Optional, last: Taken::Optional, between: Taken::Optional };

    /// Refuses pictures at `indices` among `key_frames` that the model has no place for, and the lack of those that it
    /// needs.
    pub fn check(&self, indices: impl IntoIterator<Item = u32>, key_frames: u32) -> StageResult<()> {
        let last = key_frames.saturating_sub(1);
        let (mut has_first, mut has_last) = (false, false);
        for index in indices {
            let (field, taken, place) = match index {
                0 => ("input_reference", self.first, "first"),
                i if i == last => ("last_input_reference", self.last, "last"),
                _ => ("input_reference", self.between, "middle"),
            };
            if index > last {
                let message = format!("there is no key frame {index} among {key_frames}");
                return Err(StageError::invalid(field, message));
            }
            if taken == Taken::Refused {
                let message = match *self == Self::NONE {
                    true => "this model makes videos from text alone; leave the picture out".to_owned(),
                    false => format!("this model takes no picture as its {place} key frame; leave it out"),
                };
                return Err(StageError::invalid(field, message));
            }
            has_first |= index == 0;
            has_last |= index == last && last > 0;
        }
        let needs = |field, place| {
            let message = format!("this model continues pictures: give it one as the {place} key frame");
            Err(StageError::invalid(field, message))
        };
        match (self.first, self.last) {
            (Taken::Required, _) if !has_first => needs("input_reference", "first"),
            (_, Taken::Required) if !has_last => needs("last_input_reference", "last"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST_AND_LAST: PicturesTaken =
        PicturesTaken { first: Taken::Required, last: Taken::Required, between: Taken::Refused };

    fn refused(taken: PicturesTaken, indices: &[u32]) -> Option<&'static str> {
        match taken.check(indices.iter().copied(), 9) {
            Ok(()) => None,
            Err(StageError::InvalidArgument { field, .. }) => Some(field),
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn each_picture_that_is_missing_or_too_many_is_named() {
        assert_eq!(refused(PicturesTaken::NONE, &[]), None);
        assert_eq!(refused(PicturesTaken::NONE, &[0]), Some("input_reference"));
        assert_eq!(refused(PicturesTaken::ANY, &[0, 3, 8]), None);
        assert_eq!(refused(PicturesTaken::ANY, &[9]), Some("input_reference"));
        assert_eq!(refused(FIRST_AND_LAST, &[0, 8]), None);
        assert_eq!(refused(FIRST_AND_LAST, &[8]), Some("input_reference"));
        assert_eq!(refused(FIRST_AND_LAST, &[0]), Some("last_input_reference"));
        assert_eq!(refused(FIRST_AND_LAST, &[0, 4, 8]), Some("input_reference"));
    }
}
