//! Compiles the emulator, the driver's stand-in and every kernel into shared libraries, plain and under the address
//! sanitizer. An object is made again only when its source, a header that it includes or the command has changed.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
    time::SystemTime,
};

const FLAGS: [&str; 9] = [
    "-std=c++17",
    "-O1",
    "-g1",
    "-fPIC",
    "-DZOETROPE_EMULATOR",
    "-Wall",
    "-Wextra",
    "-Wno-unknown-pragmas",
    "-fno-strict-aliasing",
];

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=faulty");
    println!("cargo:rerun-if-changed=../cuda");
    println!("cargo:rustc-check-cfg=cfg(emulator)");
    let target = |part: &str| env::var(format!("CARGO_CFG_TARGET_{part}")).unwrap_or_default();
    // The emulator switches fibers in x86-64 assembly and is found by its ELF name.
    if target("ARCH") != "x86_64" || target("OS") != "linux" {
        return;
    }
    println!("cargo:rustc-cfg=emulator");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let cuda = Path::new("../cuda");
    let driver = [cuda.join("emulator/emulator.cpp"), cuda.join("emulator/driver.cpp")];
    let kernels = sources(cuda);
    let faulty = sources(Path::new("faulty"));
    let cublaslt = cuda.join("emulator/cublaslt.cpp");
    let mut variants = vec![("plain", &[][..])];
    if let Some(libasan) = libasan() {
        println!("cargo:rustc-env=LIBASAN={libasan}");
        variants.push(("asan", &["-fsanitize=address", "-fno-omit-frame-pointer"][..]));
    }
    for (variant, flags) in variants {
        let build = Build { folder: out.join(variant), flags };
        fs::create_dir_all(build.folder.join("faulty")).expect("OUT_DIR can be written");
        let wanted: Vec<_> = [&driver[..], &kernels, &faulty]
            .concat()
            .into_iter()
            .chain(cublaslt.exists().then(|| cublaslt.clone()))
            .collect();
        build.compile(&wanted);
        build.link(&[&driver[..], &kernels].concat(), "libcuda.so", "libcuda.so");
        build.link(&[&driver[..], &faulty].concat(), "libcuda.so", "faulty/libcuda.so");
        if cublaslt.exists() {
            build.link(std::slice::from_ref(&cublaslt), "libcublasLt.so", "libcublasLt.so");
        }
    }
}

/// The library that a sanitized process preloads. The compiler answers with the bare name when it has none.
fn libasan() -> Option<String> {
    let output = Command::new(compiler().get_program()).arg("-print-file-name=libasan.so").output().ok()?;
    let path = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    Path::new(&path).is_absolute().then_some(path)
}

/// The kernels of a folder, in the order of their names.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut found: Vec<_> =
        entries.filter(|path| path.extension().is_some_and(|extension| extension == "cu")).collect();
    found.sort();
    found
}

/// The C++ compiler of the target, without options.
fn compiler() -> Command {
    let tool = cc::Build::new().cpp(true).cargo_metadata(false).no_default_flags(true).get_compiler();
    tool.to_command()
}

struct Build<'a> {
    folder: PathBuf,
    flags: &'a [&'a str],
}

impl Build<'_> {
    fn object(&self, source: &Path) -> PathBuf {
        self.folder.join(source.file_name().expect("a file")).with_extension("o")
    }

    /// Compiles what is not up to date, two at a time.
    fn compile(&self, sources: &[PathBuf]) {
        let waiting = Mutex::new(sources.iter().filter(|source| !self.is_fresh(source)));
        let next = || waiting.lock().expect("no compiler panicked").next();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while let Some(source) = next() {
                        self.compile_one(source);
                    }
                });
            }
        });
    }

    fn command(&self, source: &Path) -> Command {
        let mut command = compiler();
        command.args(FLAGS).args(self.flags).args(["-x", "c++", "-I../cuda", "-MMD", "-c"]);
        command.arg(source).arg("-o").arg(self.object(source));
        command
    }

    fn compile_one(&self, source: &Path) {
        let mut command = self.command(source);
        run(&mut command);
        fs::write(self.object(source).with_extension("command"), words(&command)).expect("OUT_DIR can be written");
    }

    /// Whether the object was made by the same command, from files that have not changed since.
    fn is_fresh(&self, source: &Path) -> bool {
        let object = self.object(source);
        let made = modified(&object);
        let before = fs::read_to_string(object.with_extension("command"));
        let same = before.is_ok_and(|before| before == words(&self.command(source)));
        let rule = fs::read_to_string(object.with_extension("d")).unwrap_or_default();
        let mut inputs = rule.split_whitespace().skip(1).filter(|word| *word != "\\");
        same && made.is_some() && inputs.all(|input| modified(Path::new(input)).is_some_and(|at| Some(at) < made))
    }

    fn link(&self, sources: &[PathBuf], soname: &str, library: &str) {
        let mut command = compiler();
        command.args(self.flags).args(["-shared", "-Wl,-Bsymbolic"]).arg(format!("-Wl,-soname,{soname}"));
        command.args(sources.iter().map(|source| self.object(source))).arg("-o").arg(self.folder.join(library));
        run(&mut command);
    }
}

/// The program and its arguments, one a line.
fn words(command: &Command) -> String {
    let words = [command.get_program()].into_iter().chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join("\n")
}

fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|metadata| metadata.modified()).ok()
}

fn run(command: &mut Command) {
    let status =
        command.status().unwrap_or_else(|error| panic!("the C++ compiler does not start ({error}): {command:?}"));
    assert!(status.success(), "failed: {command:?}");
}
