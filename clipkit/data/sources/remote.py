"""Images at remote addresses."""

from dataclasses import dataclass
from pathlib import PurePosixPath

from clipkit.errors import one_line
from clipkit.images import Stored


@dataclass(frozen=True, slots=True)
class Remote(Stored):
    """Image at a remote address that fsspec supports, such as https://… or s3://…; its size is not requested."""

    address: str

    @property
    def name(self) -> str:
        return PurePosixPath(self.address.partition("?")[0]).name

    @property
    def size(self) -> int:
        return -1

    def __str__(self) -> str:
        return self.address

    def read_bytes(self) -> bytes:
        import fsspec

        try:
            with fsspec.open(self.address, "rb") as file:
                return bytes(file.read())
        except (OSError, ValueError, ImportError) as error:  # includes unknown protocols and those not installed
            raise OSError(one_line(error) or type(error).__name__) from None
        except Exception as error:  # each protocol raises different errors
            raise OSError(f"{type(error).__name__} {one_line(error)}") from None
