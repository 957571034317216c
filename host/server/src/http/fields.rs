//! The fields of a generation request, whatever they arrived as. A form knows only text, JSON knows numbers: both are
//! taken for every field. A field that nobody reads is refused by its name, so that a typo does not go unnoticed.

use super::error::ApiError;
use super::picture;
use crate::model_list::MODEL_NAME_BYTES_MAX;
use crate::submission::FunctionCall;
use pipeline::{FrameSize, FunctionName, GenerationRequest, KeyFramePosition, Sampler, StageError, limits};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;

const CONFIG_ENTRIES_MAX: usize = 64;
const CONFIG_BYTES_MAX: usize = 64 * 1024;

/// What was sent and not read yet.
pub(super) struct Fields {
    values: Map<String, Value>,
    files: BTreeMap<String, Vec<u8>>,
}

/// Everything that a generation request can say.
pub(super) struct Generation {
    pub(super) request: GenerationRequest,
    pub(super) images: Vec<(KeyFramePosition, Vec<u8>)>,
    pub(super) prompt_hook: Option<FunctionCall>,
    pub(super) effects: Vec<FunctionCall>,
    pub(super) director: Option<FunctionCall>,
    /// The director's own input, JSON text.
    pub(super) input: Option<String>,
}

impl Fields {
    pub(super) fn new(mut values: Map<String, Value>) -> Self {
        // `null` says the same as silence.
        values.retain(|_, value| !value.is_null());
        Self { values, files: BTreeMap::new() }
    }

    pub(super) fn add_file(&mut self, name: String, bytes: Vec<u8>) -> Result<(), ApiError> {
        if self.values.contains_key(&name) || self.files.contains_key(&name) {
            return Err(refuse(&name, "given twice"));
        }
        self.files.insert(name, bytes);
        Ok(())
    }

    /// A digest of all fields, the same for a repeated request whatever its form's boundary is.
    pub(super) fn digest(&self, route: &str) -> pipeline::Digest {
        let mut hash = Sha256::new();
        let mut part = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        part(route.as_bytes());
        // Keys of a JSON object are sorted here.
        part(Value::Object(self.values.clone()).to_string().as_bytes());
        for (name, bytes) in &self.files {
            part(name.as_bytes());
            part(bytes);
        }
        pipeline::Digest::new(hash.finalize().into())
    }

    pub(super) fn text(&mut self, name: &'static str) -> Result<Option<String>, ApiError> {
        match self.values.remove(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(refuse(name, "this is a text")),
        }
    }

    /// A number, or the text of one.
    fn number<T: FromStr>(&mut self, name: &'static str, expected: &str) -> Result<Option<T>, ApiError> {
        let text = match self.values.remove(name) {
            None => return Ok(None),
            Some(Value::String(text)) => text,
            Some(Value::Number(number)) => number.to_string(),
            Some(_) => return Err(refuse(name, format!("this is {expected}"))),
        };
        text.trim().parse().map(Some).map_err(|_| refuse(name, format!("{} is not {expected}", shown(&text))))
    }

    fn parsed<T: FromStr<Err = StageError>>(&mut self, name: &'static str) -> Result<Option<T>, ApiError> {
        Ok(self.text(name)?.map(|text| text.parse()).transpose()?)
    }

    /// A list of texts, or one text with commas.
    fn list<T: FromStr<Err = StageError>>(&mut self, name: &'static str) -> Result<Vec<T>, ApiError> {
        let texts = match self.values.remove(name) {
            None => Vec::new(),
            Some(Value::String(text)) => {
                text.split(',').filter(|part| !part.trim().is_empty()).map(str::to_owned).collect()
            }
            Some(Value::Array(values)) => {
                let text = |value: Value| {
                    value.as_str().map(str::to_owned).ok_or_else(|| refuse(name, "this is a list of texts"))
                };
                values.into_iter().map(text).collect::<Result<_, _>>()?
            }
            Some(_) => return Err(refuse(name, "this is a list of texts")),
        };
        Ok(texts.iter().map(|text| text.parse::<T>()).collect::<Result<Vec<T>, StageError>>()?)
    }

    /// Length in milliseconds, from seconds.
    fn duration_ms(&mut self) -> Result<Option<u32>, ApiError> {
        let Some(seconds) = self.number::<f64>("seconds", "a number of seconds, like 4")? else { return Ok(None) };
        let ms = (seconds * 1000.0).round();
        if !(1.0..=f64::from(limits::DURATION_MS_MAX)).contains(&ms) {
            let max = limits::DURATION_MS_MAX / 1000;
            return Err(refuse("seconds", format!("{seconds} is out of range: more than 0 and at most {max}")));
        }
        Ok(Some(ms as u32))
    }

    fn request(&mut self) -> Result<GenerationRequest, ApiError> {
        let count = "a whole number from 0";
        let request = GenerationRequest {
            prompt: self.text("prompt")?.ok_or_else(|| refuse("prompt", "say what the video should show"))?,
            negative_prompt: self.text("negative_prompt")?.unwrap_or_default(),
            model: self.text("model")?,
            size: self.parsed::<FrameSize>("size")?,
            duration_ms: self.duration_ms()?,
            fps: self.number("fps", count)?,
            key_frames: self.number("key_frames", count)?,
            steps: self.number("steps", count)?,
            guidance: self.number("guidance", "a number")?,
            shift: self.number("shift", "a number")?,
            sampler: self.parsed::<Sampler>("sampler")?,
            loras: self.list("loras")?,
            solver_order: self.number("solver_order", count)?,
            solver_type: self.parsed("solver_type")?,
            schedule: self.parsed("schedule")?,
            eta: self.number("eta", "a number from 0 to 1")?,
            guidance_kind: self.parsed("guidance_kind")?,
            guidance_rescale: self.number("guidance_rescale", "a number from 0 to 1")?,
            guidance_interval: self.parsed("guidance_interval")?,
            step_cache: self.parsed("step_cache")?,
            seed: self.number("seed", count)?,
        };
        if request.model.as_ref().is_some_and(|name| name.len() > MODEL_NAME_BYTES_MAX) {
            return Err(refuse("model", format!("at most {MODEL_NAME_BYTES_MAX} bytes")));
        }
        Ok(request)
    }

    fn image(&mut self, name: &'static str) -> Result<Option<Vec<u8>>, ApiError> {
        if let Some(bytes) = self.files.remove(name) {
            return Ok(Some(bytes));
        }
        self.values.remove(name).map(|value| picture::from_value(name, &value)).transpose()
    }

    fn images(&mut self) -> Result<Vec<(KeyFramePosition, Vec<u8>)>, ApiError> {
        let first = self.image("input_reference")?.map(|bytes| (KeyFramePosition::First, bytes));
        let last = self.image("last_input_reference")?.map(|bytes| (KeyFramePosition::Last, bytes));
        Ok(first.into_iter().chain(last).collect())
    }

    fn function(&mut self, name: &'static str) -> Result<Option<FunctionCall>, ApiError> {
        self.values.remove(name).map(|value| function_call(name, structured(name, value)?)).transpose()
    }

    fn effects(&mut self) -> Result<Vec<FunctionCall>, ApiError> {
        let Some(value) = self.values.remove("effects") else { return Ok(Vec::new()) };
        let calls = match structured("effects", value)? {
            Value::Array(calls) => calls,
            Value::String(names) => {
                names.split(',').map(str::trim).filter(|n| !n.is_empty()).map(|n| Value::String(n.to_owned())).collect()
            }
            call => vec![call],
        };
        if calls.len() > limits::EFFECTS_MAX {
            let message = format!("{} effects; at most {} are taken", calls.len(), limits::EFFECTS_MAX);
            return Err(refuse("effects", message));
        }
        calls.into_iter().map(|call| function_call("effects", call)).collect()
    }

    /// Configuration of the function that an invocation names.
    pub(super) fn config(&mut self) -> Result<BTreeMap<String, String>, ApiError> {
        self.values.remove("config").map_or_else(|| Ok(BTreeMap::new()), |v| config("config", structured("config", v)?))
    }

    /// The version of the function that an invocation names.
    pub(super) fn version(&mut self) -> Result<Option<u32>, ApiError> {
        self.number("version", "a version number")
    }

    /// Reads everything; whatever is left over is unknown.
    pub(super) fn generation(mut self) -> Result<Generation, ApiError> {
        let generation = Generation {
            request: self.request()?,
            images: self.images()?,
            prompt_hook: self.function("prompt_hook")?,
            effects: self.effects()?,
            director: self.function("director")?,
            input: self.values.remove("input").map(|value| match value {
                Value::String(text) => text,
                other => other.to_string(),
            }),
        };
        self.nothing_left()?;
        Ok(generation)
    }

    /// Refuses a field that nobody read.
    pub(super) fn nothing_left(self) -> Result<(), ApiError> {
        match self.values.keys().chain(self.files.keys()).next() {
            None => Ok(()),
            Some(name) => Err(refuse(&shown(name), "this field is not known here; check its spelling")),
        }
    }
}

/// A form carries structure as JSON text: `{…}` and `[…]` are read as what they are.
fn structured(field: &str, value: Value) -> Result<Value, ApiError> {
    match value {
        Value::String(text) if text.trim_start().starts_with(['{', '[']) => serde_json::from_str(&text)
            .map_err(|error| refuse(field, format!("this looks like JSON and is not valid: {error}"))),
        other => Ok(other),
    }
}

/// A name, or `{"name": …, "version": …, "config": {…}}`.
fn function_call(field: &str, value: Value) -> Result<FunctionCall, ApiError> {
    match value {
        Value::String(name) => {
            Ok(FunctionCall { name: function_name(field, &name)?, version: None, config: BTreeMap::new() })
        }
        Value::Object(mut call) => {
            let name = call.remove("name");
            let Some(Value::String(name)) = name else { return Err(refuse(field, "the function's `name` is missing")) };
            let version = call.remove("version").map(|v| version(field, &v)).transpose()?;
            let config = call.remove("config").map_or_else(|| Ok(BTreeMap::new()), |value| config(field, value))?;
            if let Some(unknown) = call.keys().next() {
                return Err(refuse(
                    field,
                    format!("{} is not known here; a call has name, version, config", shown(unknown)),
                ));
            }
            Ok(FunctionCall { name: function_name(field, &name)?, version, config })
        }
        _ => Err(refuse(field, "give a function's name, or {\"name\": …, \"version\": …, \"config\": {…}}")),
    }
}

fn function_name(field: &str, name: &str) -> Result<FunctionName, ApiError> {
    name.parse().map_err(|error| refuse(field, error))
}

fn version(field: &str, value: &Value) -> Result<u32, ApiError> {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    text.parse().map_err(|_| refuse(field, format!("{} is not a version number", shown(&text))))
}

fn config(field: &str, value: Value) -> Result<BTreeMap<String, String>, ApiError> {
    let Value::Object(entries) = value else { return Err(refuse(field, "the configuration is an object of texts")) };
    let mut config = BTreeMap::new();
    for (name, value) in entries {
        let text = match value {
            Value::String(text) => text,
            Value::Number(_) | Value::Bool(_) => value.to_string(),
            _ => return Err(refuse(field, format!("{}: a text, number or boolean is needed", shown(&name)))),
        };
        config.insert(name, text);
    }
    let bytes: usize = config.iter().map(|(name, text)| name.len() + text.len()).sum();
    if config.len() > CONFIG_ENTRIES_MAX || bytes > CONFIG_BYTES_MAX {
        let message = format!("at most {CONFIG_ENTRIES_MAX} settings of {CONFIG_BYTES_MAX} bytes in all are taken");
        return Err(refuse(field, message));
    }
    Ok(config)
}

fn refuse(field: &str, message: impl Display) -> ApiError {
    ApiError::invalid(field, format!("{field}: {message}"))
}

/// Something from outside, fit for a message: short and without control characters.
fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(60).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(value: Value) -> Result<Generation, ApiError> {
        let Value::Object(values) = value else { panic!("not an object") };
        Fields::new(values).generation()
    }

    fn refused(value: Value) -> String {
        match read(value).err().expect("refused") {
            ApiError::Invalid { param: Some(param), message, .. } => {
                assert!(message.starts_with(&param), "{message}");
                param
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_form_s_texts_and_json_s_numbers_mean_the_same() {
        let form =
            json!({ "prompt": "a", "seconds": "4", "steps": "8", "guidance": "2.5", "seed": "7", "effects": "x, y" });
        let json =
            json!({ "prompt": "a", "seconds": 4, "steps": 8, "guidance": 2.5, "seed": 7, "effects": ["x", "y"] });
        let (form, json) = (read(form).unwrap(), read(json).unwrap());
        assert_eq!(form.request, json.request);
        assert_eq!(form.request.duration_ms, Some(4000));
        let names = |g: &Generation| g.effects.iter().map(|e| e.name.to_string()).collect::<Vec<_>>();
        assert_eq!((names(&form), names(&json)), (vec!["x".to_owned(), "y".into()], vec!["x".to_owned(), "y".into()]));
    }

    #[test]
    fn every_way_to_sample_and_guide_can_be_said() {
        let request = read(json!({
            "prompt": "a", "sampler": "dpmpp-2m-sde", "solver_order": "1", "schedule": "karras", "eta": 0, "shift": "5",
            "guidance": 6, "guidance_kind": "apg:momentum=-0.5", "guidance_rescale": "0.7",
            "guidance_interval": "0.1..0.9", "step_cache": "first-block:0.08",
        }));
        let request = request.unwrap().request;
        assert_eq!(
            (request.sampler, request.solver_order, request.shift),
            (Some(Sampler::DpmSolverSde), Some(1), Some(5.0))
        );
        assert_eq!((request.eta, request.guidance_rescale), (Some(0.0), Some(0.7)));
        assert_eq!(request.schedule.map(|kind| kind.name()), Some("karras"));
        let text = |kind: Option<String>| kind.expect("given");
        assert_eq!(text(request.guidance_kind.map(String::from)), "apg:momentum=-0.5,norm=15,parallel=1");
        assert_eq!(text(request.guidance_interval.map(String::from)), "0.1..0.9");
        assert_eq!(text(request.step_cache.map(String::from)), "first-block:0.08");
        let unipc = read(json!({ "prompt": "a", "sampler": "unipc", "solver_type": "bh1" })).unwrap().request;
        assert_eq!(unipc.solver_type, Some(pipeline::SolverType::Bh1));
    }

    #[test]
    fn functions_come_with_version_and_configuration_also_as_text_in_a_form() {
        let call = json!({ "name": "grain", "version": 2, "config": { "strength": 0.3, "on": true, "tint": "red" } });
        for hook in [call.clone(), Value::String(call.to_string())] {
            let hook = read(json!({ "prompt": "a", "prompt_hook": hook })).unwrap().prompt_hook.unwrap();
            assert_eq!((hook.name.as_str(), hook.version), ("grain", Some(2)));
            assert_eq!((hook.config["strength"].as_str(), hook.config["on"].as_str()), ("0.3", "true"));
        }
        let effects = json!([call, "plain"]).to_string();
        assert_eq!(read(json!({ "prompt": "a", "effects": effects })).unwrap().effects.len(), 2);
    }

    #[test]
    fn null_is_silence_and_a_director_s_input_may_be_any_json() {
        let generation =
            read(json!({ "prompt": "a", "model": null, "seed": null, "input": { "shots": [1, 2] } })).unwrap();
        assert_eq!((generation.request.model, generation.request.seed), (None, None));
        assert_eq!(generation.input.as_deref(), Some("{\"shots\":[1,2]}"));
    }

    #[test]
    fn each_wrong_field_is_named() {
        let with = |field: &str, value: Value| {
            let mut fields = json!({ "prompt": "a" });
            fields[field] = value;
            refused(fields)
        };
        assert_eq!(refused(json!({})), "prompt");
        for (field, value) in [
            ("prompt", json!(7)),
            ("seconds", json!("soon")),
            ("seconds", json!(-1)),
            ("seconds", json!("NaN")),
            ("seconds", json!("inf")),
            ("seconds", json!("1e300")),
            ("seconds", json!(0)),
            ("size", json!("13x7")),
            ("size", json!([512, 512])),
            ("steps", json!(-3)),
            ("steps", json!(2.5)),
            ("steps", json!("99999999999999999999")),
            ("seed", json!(-1)),
            ("guidance", json!("strong")),
            ("guidance", json!([])),
            ("sampler", json!("magic")),
            ("solver_order", json!("second")),
            ("solver_type", json!("bh3")),
            ("schedule", json!("cubic")),
            ("eta", json!("some")),
            ("guidance_kind", json!("cfg-one")),
            ("guidance_kind", json!("apg:colour=1")),
            ("guidance_rescale", json!({})),
            ("guidance_interval", json!("0.9..0.1")),
            ("guidance_interval", json!([0.1, 0.9])),
            ("step_cache", json!("first-block:2")),
            ("model", json!("x".repeat(1000))),
            ("prompt_hook", json!("Bad Name")),
            ("prompt_hook", json!("{broken")),
            ("prompt_hook", json!({ "version": 1 })),
            ("prompt_hook", json!({ "name": "a", "version": "latest" })),
            ("prompt_hook", json!({ "name": "a", "config": [1] })),
            ("prompt_hook", json!({ "name": "a", "config": { "x": {} } })),
            ("prompt_hook", json!({ "name": "a", "colour": 1 })),
            ("effects", json!(vec!["x"; 100])),
            ("effects", json!([7])),
            ("director", json!("../x")),
            ("input_reference", json!("http://127.0.0.1/a.png")),
            ("input_reference", json!({ "file_id": "file_1" })),
            ("input_reference", json!({ "image_url": "data:image/png,abc" })),
            ("input_reference", json!({ "image_url": "data:image/png;base64,***" })),
            ("input_reference", json!({ "image_url": 7 })),
            ("input_reference", json!(7)),
            ("promt", json!("typo")),
        ] {
            assert_eq!(with(field, value.clone()), field, "{value}");
        }
    }

    #[test]
    fn a_repeated_request_has_the_same_digest_and_a_changed_one_has_not() {
        let digest = |value: Value, file: &[u8], route: &str| {
            let Value::Object(values) = value else { panic!("not an object") };
            let mut fields = Fields::new(values);
            fields.add_file("input_reference".into(), file.to_vec()).unwrap();
            fields.digest(route)
        };
        let first = digest(json!({ "a": 1, "b": 2 }), b"x", "r");
        assert_eq!(first, digest(json!({ "b": 2, "a": 1 }), b"x", "r"));
        for other in [
            digest(json!({ "a": 1, "b": 3 }), b"x", "r"),
            digest(json!({ "a": 1, "b": 2 }), b"y", "r"),
            digest(json!({ "a": 1, "b": 2 }), b"x", "s"),
        ] {
            assert_ne!(first, other);
        }
    }
}
