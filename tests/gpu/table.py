"""The results of a run of scripts/gpu as a table: `table.py FOLDER`. Prints Markdown; ends with 1 when something failed.

Reads what is there of check.json, sanitizer-*.json, timings.json, peers.json, forward-N.json, peer-forward-N.json, outputs.json. What a
phase did not come to is said, not left out.
"""
import json
import sys
from pathlib import Path

# Of the best of torch's implementations, of a copy's bandwidth, of torch's time.
ATTENTION_SHARE_MIN = 0.70
POINTWISE_SHARE_MIN = 0.80
FORWARD_TIMES_MAX = 1.0
OUTPUT_ERROR_MAX = 1e-2
FORWARD_ERROR_MAX = 2e-2


def read(folder, name):
    path = folder / name
    try:
        # The program says in a second line when it fails.
        return json.JSONDecoder().raw_decode(path.read_text())[0]
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def verdict(good):
    return "pass" if good else "FAIL"


def checks(folder):
    found = read(folder, "check.json")
    if found is None:
        yield "kernels against float64", "did not end", "all right", "not run"
        return
    wrong = [check for check in found["checks"] if not check["passed"]]
    yield "kernels against float64", f"{len(found['checks']) - len(wrong)} of {len(found['checks'])} right", "all right", verdict(not wrong)
    for check in wrong:
        yield f"- {check['name']}", f"{check['relative_error']}", f"<= {check['tolerance']:.0e}", "FAIL"


def sanitizers(folder):
    for tool in ("memcheck", "racecheck"):
        found = read(folder, f"sanitizer-{tool}.json")
        if found is None or "absent" in found:
            yield f"compute-sanitizer {tool}", (found or {}).get("absent", "did not end"), "0 errors", "not run"
        else:
            yield f"compute-sanitizer {tool}", f"{found['errors']} errors", "0 errors", verdict(found["errors"] == 0)


def rate(timing):
    scale, unit = (1e9, "GB/s") if timing["unit"] == "bytes/s" else (1e12, "T/s")
    return f"{timing['median_us']:.1f} us, {timing['rate'] / scale:.1f} {unit}, {100 * timing['share_of_ceiling']:.0f} % of ceiling"


def timings(folder):
    found, peers = read(folder, "timings.json"), read(folder, "peers.json") or {}
    if found is None:
        yield "timings of kernels", "did not end", "", "not run"
        return
    for name, value in found["ceilings"].items():
        yield f"ceiling: {name}", f"{value / (1e9 if name == 'copy' else 1e12):.1f} {'GB/s' if name == 'copy' else 'T/s'}", "", "measured"
    for timing in found["timings"]:
        peer = peers.get(timing["name"], {})
        if "us" in peer:
            share = peer["us"] / timing["median_us"]
            figure = f"{rate(timing)}; {peer['what']}: {peer['us']:.1f} us, {share:.2f}x its speed"
            target, good = "", "measured"
            if timing["name"].startswith("attention"):
                target, good = f">= {ATTENTION_SHARE_MIN}x", verdict(share >= ATTENTION_SHARE_MIN)
            yield timing["name"], figure, target, good
        elif timing["unit"] == "bytes/s":
            share = timing["share_of_ceiling"]
            yield timing["name"], rate(timing), f">= {100 * POINTWISE_SHARE_MIN:.0f} %", verdict(share >= POINTWISE_SHARE_MIN)
        else:
            yield timing["name"], rate(timing) + (f"; torch: {peer['failed']}" if peer else ""), "", "measured"


def forwards(folder):
    for path in sorted(folder.glob("forward-*.json")) or [None]:
        ours = path and read(folder, path.name)
        if not ours:
            yield "transformer forward", "did not end", "", "not run"
            continue
        frames, peer = path.stem.split("-")[1], read(folder, f"peer-{path.name}")
        figure, good, target = f"{ours['median_ms']:.1f} ms", "measured", ""
        if peer:
            times = ours["median_ms"] * 1e3 / peer["us"]
            figure += f"; {peer['what']}: {peer['us'] / 1e3:.1f} ms; {times:.2f}x its time"
            target, good = f"<= {FORWARD_TIMES_MAX:.1f}x", verdict(times <= FORWARD_TIMES_MAX)
        yield f"Wan 1.3B forward, {frames} frames", figure, target, good
        if "relative_rmse" in ours:
            error = ours["relative_rmse"]
            yield f"- its error to torch in f32 (torch bf16: {(peer or {}).get('relative_rmse', float('nan')):.1e})", f"{error:.1e}", f"<= {FORWARD_ERROR_MAX:.0e}", verdict(error <= FORWARD_ERROR_MAX)


def outputs(folder):
    found = read(folder, "outputs.json")
    if found is None:
        yield "generate and demo on the device against the CPU", "did not end", "", "not run"
        return
    for name, entry in found.items():
        if "failed" in entry:
            yield name, entry["failed"], "", "FAIL"
        elif "relative_rmse" in entry:
            error = entry["relative_rmse"]
            yield name, f"{error:.1e} relative RMSE; {entry['seconds']:.1f} s, CPU {entry['cpu_seconds']:.1f} s", f"<= {OUTPUT_ERROR_MAX:.0e}", verdict(error <= OUTPUT_ERROR_MAX)
        else:
            yield name, f"{entry['seconds']:.1f} s", "ends well", "pass"


PHASES = {"check": (checks, sanitizers), "time": (timings,), "model": (forwards, outputs)}


def main():
    folder = Path(sys.argv[1])
    wanted = sys.argv[2:] or list(PHASES)
    about = read(folder, "about.json") or {}
    rows = [row for phase in wanted for part in PHASES[phase] for row in part(folder)]
    print(f"{about.get('device', 'unknown device')}, {about.get('date', '')}, commit {about.get('commit', 'unknown')}\n")
    print("| what | figure | target | |\n|---|---|---|---|")
    for row in rows:
        print("| " + " | ".join(str(cell) for cell in row) + " |")
    failed = sum(row[3] == "FAIL" for row in rows)
    missing = sum(row[3] == "not run" for row in rows)
    print(f"\n{failed} failed, {missing} not run, {len(rows) - failed - missing} others")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
