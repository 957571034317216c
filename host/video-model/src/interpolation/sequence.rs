//! Which moment between which key frames each finished frame shows.

/// A moment between key frame `index` and the next one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Moment {
    /// The key frame at or before the moment.
    pub index: usize,
    /// How far on towards the next one: from 0 (the key frame itself) to below 1.
    pub t: f32,
}

/// Frame `i` of `frame_count` lies at i·(key_frames − 1)/(frame_count − 1): the first and the last are key frames, and
/// the distances are equal. Counted in integers, so a frame that falls on a key frame is exactly that.
pub fn moments(key_frames: usize, frame_count: usize) -> Vec<Moment> {
    let (gaps, intervals) = (key_frames.saturating_sub(1), frame_count.saturating_sub(1).max(1));
    let at = |i: usize| {
        let (index, rest) = (i * gaps / intervals, i * gaps % intervals);
        Moment { index, t: rest as f32 / intervals as f32 }
    };
    (0..frame_count).map(at).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(index: usize, t: f32) -> Moment {
        Moment { index, t }
    }

    #[test]
    fn doubling_puts_one_frame_into_every_gap() {
        assert_eq!(moments(3, 5), [at(0, 0.0), at(0, 0.5), at(1, 0.0), at(1, 0.5), at(2, 0.0)]);
    }

    #[test]
    fn one_picture_stands_still_and_one_frame_is_the_first() {
        assert_eq!(moments(1, 3), [at(0, 0.0); 3]);
        assert_eq!(moments(8, 1), [at(0, 0.0)]);
        assert_eq!(moments(4, 2), [at(0, 0.0), at(3, 0.0)]);
        assert_eq!(moments(8, 0), []);
    }

    proptest! {
        #[test]
        fn moments_rise_evenly_from_the_first_key_frame_to_the_last(keys in 2usize..40, frames in 2usize..500) {
            let moments = moments(keys, frames);
            prop_assert_eq!(moments.len(), frames);
            prop_assert_eq!((moments[0], moments[frames - 1]), (at(0, 0.0), at(keys - 1, 0.0)));
            let stride = (keys - 1) as f64 / (frames - 1) as f64;
            for (i, m) in moments.iter().enumerate() {
                prop_assert!((m.index as f64 + f64::from(m.t) - i as f64 * stride).abs() < 1e-4);
                prop_assert!((0.0..1.0).contains(&m.t) && (m.index + 1 < keys || m.t == 0.0));
            }
        }
    }
}
