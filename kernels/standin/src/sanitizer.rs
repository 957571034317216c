use std::process::Command;

/// Makes a program that loads the stand-in run under the address sanitizer: it then ends with a report and a failure at the
/// first access of a kernel beyond an allocation, a shared array or the launch's dynamic shared memory.
///
/// None, and a line that says why, where there is no sanitizer; then `ZOETROPE_REQUIRE_ALL` makes it a panic.
#[allow(clippy::print_stderr, reason = "whoever runs the tests must see what was skipped")]
pub fn sanitized(program: &mut Command) -> Option<&mut Command> {
    let Some(library) = option_env!("LIBASAN") else {
        assert!(
            std::env::var_os("ZOETROPE_REQUIRE_ALL").is_none(),
            "the address sanitizer is required and not installed"
        );
        eprintln!("skipped: no address sanitizer (g++'s libasan, on x86-64 Linux)");
        return None;
    };
    // Threads of kernels have stacks of their own, and what a process leaves at its end is no fault of a kernel.
    let options = "detect_leaks=0:detect_stack_use_after_return=0:abort_on_error=0:exitcode=99";
    Some(program.env("LD_PRELOAD", library).env("ASAN_OPTIONS", options).env("ZOETROPE_STANDIN", "asan"))
}
