//! A step that several sessions took together, shared out among them.

/// Shares `total` by integer weights: the parts add up to `total` exactly, and none is further than 1 from its exact share
/// (largest remainder; among equal remainders the earlier wins). No weight at all counts as equal weights.
pub(super) fn share(total: u64, weights: &[u32]) -> Vec<u64> {
    let sum: u128 = weights.iter().map(|w| u128::from(*w)).sum();
    if sum == 0 {
        return if weights.is_empty() { Vec::new() } else { share(total, &vec![1; weights.len()]) };
    }
    let exact = |weight: &u32| u128::from(total) * u128::from(*weight);
    let mut parts: Vec<u64> = weights.iter().map(|w| (exact(w) / sum) as u64).collect();
    let mut by_remainder: Vec<usize> = (0..weights.len()).collect();
    by_remainder.sort_by_key(|&i| std::cmp::Reverse(exact(&weights[i]) % sum));
    let missing = total - parts.iter().sum::<u64>();
    for &i in by_remainder.iter().take(missing as usize) {
        parts[i] += 1;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn parts_add_up_to_the_whole_and_follow_the_weights(
            total in any::<u64>(), weights in prop::collection::vec(any::<u32>(), 1..40)
        ) {
            let parts = share(total, &weights);
            prop_assert_eq!(parts.iter().map(|p| u128::from(*p)).sum::<u128>(), u128::from(total));
            let sum: u128 = weights.iter().map(|w| u128::from(*w)).sum();
            for (part, weight) in parts.iter().zip(&weights) {
                if let Some(floor) = (u128::from(total) * u128::from(*weight)).checked_div(sum) {
                    prop_assert!((floor..=floor + 1).contains(&u128::from(*part)));
                    prop_assert!(*weight > 0 || *part == 0, "who has no weight pays nothing");
                }
            }
        }
    }

    #[test]
    fn the_largest_remainders_get_what_is_left() {
        assert_eq!(share(10, &[1, 1, 1]), [4, 3, 3]);
        assert_eq!(share(7, &[3, 2, 2]), [3, 2, 2]);
        assert_eq!(share(100, &[1, 2, 4]), [14, 29, 57]);
        assert_eq!(share(5, &[0, 0]), [3, 2]);
        assert!(share(5, &[]).is_empty());
    }
}
