"""The upload of an adapter to the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from fedfault.errors import UserError, read_first_line


def upload_adapter(folder: Path, name: str, repo_id: str, *, private: bool, token: str | None) -> str:
    """Upload a folder in PEFT's format with its model card to a repository, and return its address.

    Raises `UserError` for a name that no repository can have, and for whatever the Hub or the network refuses.
    """
    from httpx import HTTPError
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    hub = HfApi(token=token)
    try:
        address = hub.create_repo(repo_id, private=private, exist_ok=True)
        hub.upload_folder(repo_id=address.repo_id, folder_path=folder, commit_message=f"Adapter of the run {name}")
    except HFValidationError as e:
        raise UserError(f"{repo_id!r} is no name of a repository: write ORG/NAME ({read_first_line(e)})") from e
    except HfHubHTTPError as e:
        status = e.response.status_code
        hint = (
            "log in with `hf auth login`, or give a token that may write there" if status in (401, 403) else "try again"
        )
        raise UserError(f"the Hub has not taken {repo_id} (status {status}: {read_first_line(e)}); {hint}") from e
    except (OSError, HTTPError) as e:  # nobody answers, or HF_HUB_OFFLINE is set
        raise UserError(
            f"cannot reach the Hub to upload {repo_id} ({read_first_line(e)}); {folder} is what to upload"
        ) from e
    return str(address)
