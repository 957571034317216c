//! Adapters that a request asks for by name.

use crate::error::{StageError, StageResult};
use crate::limits;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Which of a model's two transformers an adapter is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoraExpert {
    /// The one that works while there is much noise.
    High,
    /// The one that takes over when there is little.
    Low,
}

/// An adapter (LoRA) that the operator has registered, and how much of it. As text: `name`, `name:0.8`, and for one of two
/// transformers `name@high:0.8` or `name@low`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraChoice {
    /// The registered name.
    pub name: String,
    /// 1 is what its authors meant; less weakens it, 0 is nothing, negative numbers do the opposite.
    #[serde(default = "full_strength")]
    pub strength: f32,
    /// The transformer it is for; all of the model's when not given.
    #[serde(default)]
    pub expert: Option<LoraExpert>,
}

fn full_strength() -> f32 {
    1.0
}

impl LoraChoice {
    /// The same, unless there are too many adapters, one is given twice, or a strength makes no sense.
    pub(crate) fn checked(all: &[Self]) -> StageResult<Vec<Self>> {
        let refused = |message: String| Err(StageError::invalid("loras", message));
        if all.len() > limits::LORAS_MAX {
            return refused(format!("{} adapters, at most {} are possible", all.len(), limits::LORAS_MAX));
        }
        for (index, lora) in all.iter().enumerate() {
            let max = limits::LORA_STRENGTH_MAX;
            if !(-max..=max).contains(&lora.strength) {
                return refused(format!("`{}`: strength {} is not between -{max} and {max}", lora.name, lora.strength));
            }
            if lora.name.is_empty()
                || all[..index].iter().any(|other| other.name == lora.name && other.expert == lora.expert)
            {
                return refused(format!("`{}` is empty or named twice; give each adapter once", lora.name));
            }
        }
        Ok(all.to_vec())
    }

    /// The same, when they are all among `registered`.
    pub(crate) fn known(all: &[Self], registered: &[String]) -> StageResult<Vec<Self>> {
        if let Some(lora) = all.iter().find(|lora| !registered.contains(&lora.name)) {
            let known = registered.join(", ");
            let known = if known.is_empty() { "none is registered".to_owned() } else { format!("choose of: {known}") };
            return Err(StageError::invalid("loras", format!("there is no adapter `{}`; {known}", lora.name)));
        }
        Self::checked(all)
    }
}

impl FromStr for LoraChoice {
    type Err = StageError;
    fn from_str(text: &str) -> StageResult<Self> {
        let (name, strength) = match text.trim().rsplit_once(':') {
            // A path may hold a colon: what follows the last one is a strength only if it is a number.
            Some((name, strength)) => match strength.parse() {
                Ok(strength) => (name, strength),
                Err(_) => (text.trim(), full_strength()),
            },
            None => (text.trim(), full_strength()),
        };
        let (name, expert) = match name.rsplit_once('@') {
            Some((name, "high")) => (name, Some(LoraExpert::High)),
            Some((name, "low")) => (name, Some(LoraExpert::Low)),
            _ => (name, None),
        };
        let choice = Self { name: name.to_owned(), strength, expert };
        Self::checked(std::slice::from_ref(&choice))?;
        Ok(choice)
    }
}

impl fmt::Display for LoraChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let expert = match self.expert {
            None => "",
            Some(LoraExpert::High) => "@high",
            Some(LoraExpert::Low) => "@low",
        };
        write!(f, "{}{expert}:{}", self.name, self.strength)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_strength_follows_the_last_colon() {
        let parsed = |text: &str| text.parse::<LoraChoice>().map(|lora| (lora.name, lora.strength));
        assert_eq!(parsed("anime").unwrap(), ("anime".to_owned(), 1.0));
        assert_eq!(parsed(" anime:0.5 ").unwrap(), ("anime".to_owned(), 0.5));
        assert_eq!(parsed("C:/loras/a.safetensors:-1").unwrap(), ("C:/loras/a.safetensors".to_owned(), -1.0));
        assert_eq!(parsed("C:/loras/a.safetensors").unwrap().1, 1.0);
        for bad in ["", ":1", "a:1e9", "a:NaN", "a:inf"] {
            assert_eq!(parsed(bad).unwrap_err().code(), "invalid_argument", "{bad}");
        }
        for whole in ["a:0.25", "a@high:0.25", "a@b@low:1"] {
            assert_eq!(whole.parse::<LoraChoice>().unwrap().to_string(), whole);
        }
    }

    #[test]
    fn one_adapter_cannot_be_given_twice_nor_too_many() {
        let lora = |text: &str| text.parse::<LoraChoice>().unwrap();
        assert!(LoraChoice::checked(&[lora("a"), lora("b"), lora("a@high"), lora("a@low")]).is_ok());
        assert!(LoraChoice::checked(&[lora("a"), lora("a")]).is_err());
        let many: Vec<_> = (0..=limits::LORAS_MAX).map(|i| lora(&i.to_string())).collect();
        assert!(LoraChoice::checked(&many).is_err());
        let known = LoraChoice::known(&[lora("a"), lora("b")], &["a".to_owned()]).unwrap_err().to_string();
        assert!(known.contains("`b`") && known.contains("choose of: a"), "{known}");
    }
}
