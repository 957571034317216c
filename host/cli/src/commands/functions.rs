//! `push` and `functions`.

use crate::args::{Push, Remote};
use crate::failure::{CommandResult, Failure};
use crate::output::{Output, table};
use crate::remote::Client;

/// Uploads a component.
pub fn push(args: &Push, output: Output) -> CommandResult {
    let path = &args.component;
    let component = std::fs::read(path).map_err(|error| Failure::refused(format!("{}: {error}", path.display())))?;
    let client = Client::new(&args.remote)?;
    let answer = client.put_bytes(&format!("/v1/functions/{}", args.name), "application/wasm", &component)?;
    let text = format!(
        "{} is version {} ({}, {} bytes, {})",
        args.name,
        answer["version"],
        answer["kind"].as_str().unwrap_or("?"),
        component.len(),
        answer["digest"].as_str().map_or("?", |digest| &digest[..digest.len().min(12)])
    );
    output.result(&answer, &text);
    Ok(())
}

/// Lists functions.
pub fn list(remote: &Remote, output: Output) -> CommandResult {
    let answer = Client::new(remote)?.get("/v1/functions")?;
    let mut rows = vec![["function", "version", "kind", "bytes"].map(str::to_owned).to_vec()];
    for function in answer["data"].as_array().into_iter().flatten() {
        let text = |name: &str| function[name].as_str().map_or_else(|| function[name].to_string(), str::to_owned);
        rows.push(vec![text("name"), text("version"), text("kind"), text("size_bytes")]);
    }
    output.result(&answer, &table(&rows));
    Ok(())
}

/// Removes a function.
pub fn delete(name: &str, remote: &Remote, output: Output) -> CommandResult {
    let answer = Client::new(remote)?.delete(&format!("/v1/functions/{name}"))?;
    output.result(&answer, &format!("{name} is gone"));
    Ok(())
}
