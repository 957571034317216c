//! The `zoetrope` program: reads the command line, runs one command, turns its failure into an exit code.

mod args;
mod commands;
mod failure;
mod hub;
mod output;
mod progress;
mod remote;

use args::{Cli, Command, Functions, Keys, Tenants};
use clap::{CommandFactory, Parser};
use failure::CommandResult;
use output::Output;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let output = Output::new(cli.json);
    // Commands that show their own progress log only what went wrong; the server says what it does.
    server::telemetry::init(if matches!(cli.command, Command::Serve(_)) { "info" } else { "warn" });
    match run(cli.command, output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if output.is_json() {
                output.json(&serde_json::json!({ "error": failure.message }));
            } else {
                output.note(&format!("error: {failure}"));
            }
            ExitCode::from(failure.code as u8)
        }
    }
}

fn run(command: Command, output: Output) -> CommandResult {
    match command {
        Command::Demo(args) => block_on(commands::demo::run(args, output)),
        Command::Serve(args) => block_on(commands::serve::run(args, output)),
        Command::Generate(args) => block_on(commands::generate::run(*args, output)),
        Command::Interpolate(args) => block_on(commands::interpolate::run(args, output)),
        Command::Quality(args) => commands::quality::run(&args, output),
        Command::Models(command) => commands::models::run(command, output),
        Command::Bench(args) => block_on(commands::bench::run(args, output)),
        Command::Push(args) => commands::functions::push(&args, output),
        Command::Invoke(args) => commands::invoke::run(&args, output),
        Command::Functions(Functions::List { remote }) => commands::functions::list(&remote, output),
        Command::Functions(Functions::Delete { name, remote }) => commands::functions::delete(&name, &remote, output),
        Command::Usage(args) => commands::account::usage(&args, output),
        Command::Tenants(Tenants::List { remote }) => commands::account::list_tenants(&remote, output),
        Command::Tenants(Tenants::Create { id, remote }) => commands::account::create_tenant(&id, &remote, output),
        Command::Keys(Keys::Create { tenant, label, remote }) => {
            commands::account::create_key(&tenant, &label, &remote, output)
        }
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "zoetrope", &mut std::io::stdout());
            Ok(())
        }
    }
}

fn block_on(command: impl Future<Output = CommandResult>) -> CommandResult {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.map_err(|error| failure::Failure::failed(format!("no async runtime: {error}")))?.block_on(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
