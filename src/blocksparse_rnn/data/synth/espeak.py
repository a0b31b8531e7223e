"""eSpeak NG through ctypes: text to samples, deterministic."""

import _ctypes
import ctypes
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from blocksparse_rnn.errors import UserError

# Names of the English accents in settings -> eSpeak's, which are paths in its data folder.
ACCENTS = {
    "en-us": "gmw/en-US",
    "en-us-nyc": "gmw/en-US-nyc",
    "en-gb": "gmw/en",
    "en-gb-rp": "gmw/en-GB-x-rp",
    "en-gb-scotland": "gmw/en-GB-scotland",
    "en-gb-lancaster": "gmw/en-GB-x-gbclan",
    "en-gb-midlands": "gmw/en-GB-x-gbcwmd",
    "en-caribbean": "gmw/en-029",
}

# eSpeak's voice variants that sound human and differ clearly in pitch or long-term spectrum, the clearest
# first. Left out: robots, whispers, croaks and near copies.
WOMEN = [
    "f2", "f4", "Annie", "f3", "linda", "f1", "Andrea", "f5", "belinda", "steph", "shelby", "anika",
    "Alicia", "grandma",
]  # fmt: skip
MEN = [
    "m3", "m7", "m1", "m4", "adam", "Mario", "m2", "m8", "Nguyen", "Alex", "Gene", "david", "Denis", "m6",
    "pablo", "paul", "Michael", "Diogo", "edward", "rob", "m5", "quincy", "norbert", "max", "Mike",
    "iven4", "sandro", "marcelo",
]  # fmt: skip

# espeakng-loader 0.2.4 carries eSpeak NG 1.52; these are the numbers of its speak_lib.h.
_AUDIO_OUTPUT_SYNCHRONOUS = 2
_INITIALIZE_DONT_EXIT = 0x8000
_RATE, _VOLUME, _PITCH = 1, 2, 3
_CHARS_UTF8 = 1
_POSITION_CHARACTER = 1
# At eSpeak's default volume of 100 the louder variants clip in the synthesiser.
_QUIET = 40

_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)


class Espeak:
    """Synthesises speech; the samples are a function of the arguments of `say` alone.

    eSpeak keeps the state of its oscillators and noise generators between texts, and initialising it
    again does not reset them. So the library is loaded anew for each text, which takes a millisecond or
    two, and its random generators are seeded.

    Raises:
        UserError: the library or its data cannot be loaded.
    """

    def __init__(self) -> None:
        try:
            import espeakng_loader

            self._path = espeakng_loader.get_library_path()
            self._data = Path(espeakng_loader.get_data_path())
            _unload(self._load())
        except (ImportError, OSError, RuntimeError) as error:
            raise UserError(
                f"cannot load eSpeak NG ({error}); install it with: "
                "pip install --force-reinstall espeakng-loader"
            ) from None

    def say(self, text: str, voice: str, rate_wpm: int, pitch: int) -> tuple[NDArray[np.int16], int]:
        """Synthesise `text` with `voice`, an accent and a variant such as `en-gb+f3`.

        Returns:
            16-bit samples of shape (S,) and their number per second.

        Raises:
            UserError: there is no such voice.
        """
        name = self._voice_path(voice)
        pieces: list[bytes] = []

        def keep(wave: int | None, count: int, _events: int | None) -> int:
            if wave and count:
                pieces.append(ctypes.string_at(wave, 2 * count))
            return 0

        library = self._load()
        try:
            callback = _Callback(keep)
            library.espeak_SetSynthCallback(callback)
            if library.espeak_SetVoiceByName(name.encode()) != 0:
                raise UserError(f"eSpeak NG has no voice {voice}")
            library.espeak_SetParameter(_RATE, rate_wpm, 0)
            library.espeak_SetParameter(_PITCH, pitch, 0)
            library.espeak_SetParameter(_VOLUME, _QUIET, 0)
            utf8 = text.encode()
            status = library.espeak_Synth(
                utf8, ctypes.c_size_t(len(utf8) + 1), 0, _POSITION_CHARACTER, 0, _CHARS_UTF8, None, None
            )
            assert status == 0, f"eSpeak NG failed on {text!r}: {status}"
            return np.frombuffer(b"".join(pieces), dtype=np.int16), library.espeak_ng_GetSampleRate()
        finally:
            _unload(library)

    def _load(self) -> ctypes.CDLL:
        """A freshly loaded library, its data read, its random generators seeded."""
        library = ctypes.CDLL(self._path)
        rate = library.espeak_Initialize(
            _AUDIO_OUTPUT_SYNCHRONOUS, 0, str(self._data).encode(), _INITIALIZE_DONT_EXIT
        )
        # If eSpeak cannot read its data, it silently uses that of the system.
        used = ctypes.c_char_p()
        library.espeak_Info(ctypes.byref(used))
        if rate <= 0 or used.value is None or Path(used.value.decode()) != self._data:
            _unload(library)  # otherwise the next load would get this copy with its state
            raise OSError(f"it cannot read {self._data}; paths over 140 characters are too long for it")
        library.espeak_ng_SetRandSeed(ctypes.c_long(0))
        ctypes.CDLL(None).srand(0)  # some variants draw their breath noise from the C library
        return library

    def _voice_path(self, voice: str) -> str:
        """`gmw/en+f3` for `en-gb+f3`; an unknown variant is an error, which eSpeak would ignore."""
        accent, _, variant = voice.partition("+")
        known = not variant or (self._data / "voices" / "!v" / variant).is_file()
        if accent not in ACCENTS or not known:
            raise UserError(
                f"eSpeak NG has no voice {voice}; accents are {', '.join(ACCENTS)}, "
                f"variants are the files in {self._data / 'voices' / '!v'}"
            )
        return f"{ACCENTS[accent]}+{variant}" if variant else ACCENTS[accent]


def _unload(library: ctypes.CDLL) -> None:
    library.espeak_Terminate()
    _ctypes.dlclose(library._handle)
