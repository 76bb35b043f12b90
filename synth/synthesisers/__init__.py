"""The synthesisers, one file each. The file's name is the synthesiser's, its docstring the help.

Each holds two functions and a number or two:

    def fit(examples: Examples, classes: Sequence[str], folder: Path, *, progress: Progress, device: str, seed: int,
            <its options, keyword-only with defaults>) -> dict[str, Any]
        Learns from examples of the train split; `folder` outlives a kill, and a second call goes on where the first
        one stopped. Writes what `generate` needs into `folder` (safetensors and JSON, no pickle). Returns what a person
        should know of it (seconds, steps, losses): it goes into the manifest. What needs no learning returns {}.

    def generate(scenes: Sequence[Scene], folder: Path, *, device: str, <options>) -> list[Pixels]
        One window for each scene, of its ground's shape, type and channels. Pixels away from the mask (further than
        the feather, `FEATHER` pixels) are the ground's own, bit for bit. The same scene gives the same window on a CPU,
        whatever else is in the batch.

    LEARNS = False
        Where there is nothing to learn. `WINDOW = 64` says which size of window it wants, unless the user does.

    STEP = 1
        Raised when the same input gives other pixels than before: part of the key.
"""
