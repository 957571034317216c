//! What an upload must be: cheap checks on the bytes before anything is compiled, then the fit to one of our worlds.

use crate::bindings::director::DirectorPre;
use crate::bindings::frame_effect::FrameEffectPre;
use crate::bindings::prompt_hook::PromptHookPre;
use crate::bindings::simple_effect::SimpleEffectPre;
use crate::error::ValidationError;
use crate::function_log::{clipped, escaped};
use crate::limits::Limits;
use crate::linkers::{FunctionKind, Linkers};
use crate::state::CallState;
use wasmparser::{Encoding, Parser, Payload};
use wasmtime::Engine;
use wasmtime::component::types::ComponentItem;
use wasmtime::component::{Component, InstancePre, Type};

/// A component that fits a world, ready to be instantiated.
pub(crate) enum World {
    /// World `prompt-hook`.
    PromptHook(PromptHookPre<CallState>),
    /// World `simple-effect`.
    SimpleEffect(SimpleEffectPre<CallState>),
    /// World `frame-effect`.
    FrameEffect(FrameEffectPre<CallState>),
    /// World `director`.
    Director(DirectorPre<CallState>),
}

impl World {
    pub(crate) fn kind(&self) -> FunctionKind {
        match self {
            Self::PromptHook(_) => FunctionKind::PromptHook,
            Self::SimpleEffect(_) => FunctionKind::SimpleEffect,
            Self::FrameEffect(_) => FunctionKind::FrameEffect,
            Self::Director(_) => FunctionKind::Director,
        }
    }
}

/// Checks what can be seen without compiling: kind of file, size, number and size of functions, nesting.
pub(crate) fn check_bytes(wasm: &[u8], limits: &Limits) -> Result<(), ValidationError> {
    if wasm.len() > limits.component_bytes_max {
        return Err(ValidationError::TooLarge { bytes: wasm.len(), bytes_max: limits.component_bytes_max });
    }
    if Engine::detect_precompiled(wasm).is_some() {
        return Err(ValidationError::Precompiled);
    }
    if !wasm.starts_with(b"\0asm") {
        let hint = match wasm {
            [] => "the upload is empty",
            _ => {
                "a component starts with the bytes 00 61 73 6d; upload the `.wasm` file itself, not text or an archive"
            }
        };
        return Err(ValidationError::NotWasm(hint.to_owned()));
    }
    if Parser::is_core_wasm(wasm) {
        return Err(ValidationError::CoreModule);
    }
    check_structure(wasm, limits)
}

fn check_structure(wasm: &[u8], limits: &Limits) -> Result<(), ValidationError> {
    let too_complex = |what: String, max: u64| Err(ValidationError::TooComplex { what, max });
    let (mut functions, mut depth) = (0_u32, 0_u32);
    for payload in Parser::new(0).parse_all(wasm) {
        match payload.map_err(|error| ValidationError::Broken(error.to_string()))? {
            Payload::Version { encoding: Encoding::Component, .. } => depth += 1,
            Payload::End(_) => depth = depth.saturating_sub(1),
            // A module's end is counted as a component's is.
            Payload::Version { encoding: Encoding::Module, .. } => depth += 1,
            Payload::CodeSectionStart { count, .. } => functions = functions.saturating_add(count),
            Payload::CodeSectionEntry(body) => {
                let (bytes, bytes_max) = (body.range().len(), limits.component_function_bytes_max);
                if bytes > bytes_max {
                    return too_complex(format!("a function of {bytes} bytes"), bytes_max as u64);
                }
            }
            _ => {}
        }
        if functions > limits.component_functions_max {
            return too_complex(format!("{functions} functions"), u64::from(limits.component_functions_max));
        }
        if depth > limits.component_nesting_max {
            return too_complex(format!("components nested {depth} deep"), u64::from(limits.component_nesting_max));
        }
    }
    Ok(())
}

/// Finds the world that a component is made for and links it with what that world grants.
pub(crate) fn link(component: &Component, linkers: &Linkers) -> Result<World, ValidationError> {
    let kind = find_kind(component)?;
    check_imports(component, kind)?;
    let misfit = |error: wasmtime::Error| ValidationError::WrongType { world: kind.world(), message: chain(&error) };
    let pre: InstancePre<CallState> = linkers.get(kind).instantiate_pre(component).map_err(misfit)?;
    match kind {
        FunctionKind::PromptHook => PromptHookPre::new(pre).map(World::PromptHook),
        FunctionKind::SimpleEffect => SimpleEffectPre::new(pre).map(World::SimpleEffect),
        FunctionKind::FrameEffect => FrameEffectPre::new(pre).map(World::FrameEffect),
        FunctionKind::Director => DirectorPre::new(pre).map(World::Director),
    }
    .map_err(misfit)
}

fn find_kind(component: &Component) -> Result<FunctionKind, ValidationError> {
    let ty = component.component_type();
    let (mut kinds, mut names) = (Vec::new(), Vec::new());
    for (name, item) in ty.exports(component.engine()) {
        names.push(format!("`{name}`"));
        kinds.extend(kind_of_export(name, &item.ty));
    }
    match kinds[..] {
        [kind] => Ok(kind),
        [] => {
            let found = if names.is_empty() { "nothing".to_owned() } else { names.join(", ") };
            Err(ValidationError::NoKnownExport { found: tidy(&found) })
        }
        _ => Err(ValidationError::SeveralKinds { found: tidy(&names.join(", ")) }),
    }
}

/// The world that an export belongs to. Both effect worlds export `apply`: one takes bytes, the other a handle.
fn kind_of_export(name: &str, item: &ComponentItem) -> Option<FunctionKind> {
    let ComponentItem::ComponentFunc(function) = item else { return None };
    match name {
        "plan" => Some(FunctionKind::PromptHook),
        "run" => Some(FunctionKind::Director),
        "apply" => match function.params().next() {
            Some((_, Type::Borrow(_) | Type::Own(_))) => Some(FunctionKind::FrameEffect),
            _ => Some(FunctionKind::SimpleEffect),
        },
        _ => None,
    }
}

fn check_imports(component: &Component, kind: FunctionKind) -> Result<(), ValidationError> {
    let ty = component.component_type();
    for (import, item) in ty.imports(component.engine()) {
        // Types alone give nothing, and a resource that no granted interface defines does not link.
        if matches!(item.ty, ComponentItem::Type(_) | ComponentItem::Resource(_)) {
            continue;
        }
        let interface = import.split('@').next().unwrap_or(import);
        if !kind.grants(interface) {
            let hint = if FunctionKind::Director.grants(interface) { "; directors have it" } else { "" };
            return Err(ValidationError::NotGranted { import: tidy(import), world: kind.world(), hint });
        }
    }
    Ok(())
}

/// wasmtime's account of what does not fit, from the outside in.
fn chain(error: &wasmtime::Error) -> String {
    tidy(&format!("{error:#}"))
}

/// Text with names from an upload: bounded, on one line.
pub(crate) fn tidy(text: &str) -> String {
    escaped(clipped(text, 500))
}
