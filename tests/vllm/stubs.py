"""Writes a shared library for each CUDA library that torch's wheel names and a machine without a GPU lacks.

They hold the symbols that the loader looks for, and nothing that does anything: on the processor none of them is called.
"""
import re
import subprocess
import sys
from pathlib import Path

# Every function answers that it failed (100: there is no device).
REFUSE = "mov $100, %eax\nret\n"
KINDS = r"lib(cu[A-Za-z]+|nccl|nvrtc|nvshmem_host)\.so(\.\d+)*$"


def readelf(*arguments: str) -> str:
    return subprocess.run(["readelf", "-W", *arguments], capture_output=True, text=True, check=False).stdout


def main(torch: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    libraries = sorted(torch.glob("lib/*.so*"))
    here = {library.name for library in libraries}
    # Of each missing library, its symbols by the version under which they are looked for.
    wanted: dict[str, dict[str, set[str]]] = {}
    undefined: set[str] = set()
    defined: set[str] = set()
    for library in libraries:
        for name in re.findall(r"NEEDED.*\[(.*)\]", readelf("-d", str(library))):
            if re.match(KINDS, name) and name not in here:
                wanted.setdefault(name, {})
        files: dict[str, str] = {}
        file = ""
        for found in re.finditer(r"File: (\S+)|  Name: (\S+)  Flags", readelf("-V", str(library))):
            file = found[1] or file
            if found[2]:
                files[found[2]] = file
        for line in readelf("--dyn-syms", str(library)).splitlines():
            columns = line.split()
            if len(columns) < 8 or not columns[0].endswith(":"):
                continue
            symbol, _, version = columns[7].partition("@")
            version = version.lstrip("@")
            if columns[6] != "UND":
                defined.add(symbol)
            elif (file := files.get(version, "")) in wanted:
                wanted[file].setdefault(version, set()).add(symbol)
            elif not version:
                undefined.add(symbol)
    loose = {symbol for symbol in undefined - defined if re.match(r"(cu|nccl|nvrtc|nvshmem|nvml)", symbol)}
    for name, versions in wanted.items():
        symbols = set().union(*versions.values()) | (loose if name.startswith("libcudart.") else set())
        source, script = out / "stub.s", out / "stub.map"
        # What has no version may be found in any library.
        lines = [f".globl {symbol}\n.type {symbol}, @function\n{symbol}:" for symbol in sorted(symbols)]
        source.write_text(".text\n" + "\n".join(lines) + "\n" + REFUSE)
        nodes = [f"{version} {{ global: {' '.join(f'{s};' for s in sorted(of))} }};" for version, of in versions.items()]
        script.write_text("\n".join(nodes))
        command = ["gcc", "-shared", "-nostdlib", "-o", str(out / name), f"-Wl,-soname,{name}", str(source)]
        subprocess.run(command + ([f"-Wl,--version-script={script}"] if nodes else []), check=True)
        source.unlink()
        script.unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
