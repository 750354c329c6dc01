"""Reads AWS's files of profiles and credentials, with botocore where it is installed: obstore does not know them."""

import importlib
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blockmap.errors import UsageError

if TYPE_CHECKING:
    from obstore.store import S3Config, S3Credential

_GOOD_FOR = timedelta(minutes=5)
"""How long credentials are used before botocore is asked again, which renews those that expire."""
_ENOUGH = ("AWS_ACCESS_KEY_ID", "AWS_SKIP_SIGNATURE")
_FILES = (("AWS_CONFIG_FILE", "~/.aws/config"), ("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"))
_ENDPOINTS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT")
_REGIONS = ("AWS_REGION", "AWS_DEFAULT_REGION")


class AwsProfile:
    """Gives obstore the credentials of a profile, which are looked for at the first request."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.settings: S3Config = {}
        """Settings of the profile that the environment does not have."""
        values = session.get_scoped_config()
        if (region := values.get("region")) and not any(name in os.environ for name in _REGIONS):
            self.settings["region"] = region
        if (endpoint := values.get("endpoint_url")) and not any(name in os.environ for name in _ENDPOINTS):
            self.settings["endpoint"] = endpoint

    def __call__(self) -> "S3Credential":
        found = self._session.get_credentials()
        if found is None:
            raise UsageError("AWS's files hold no credentials for this profile: correct AWS_PROFILE or the files")
        frozen = found.get_frozen_credentials()
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.now(UTC) + _GOOD_FOR,
        }


def profile() -> AwsProfile | None:
    """Returns the profile that AWS's files and AWS_PROFILE name; None where the environment suffices, or there are no files.

    UsageError where a profile is named that cannot be used.
    """
    if any(name in os.environ for name in _ENOUGH):
        return None
    named = os.environ.get("AWS_PROFILE")
    if not named and not any(Path(os.environ.get(name, usual)).expanduser().exists() for name, usual in _FILES):
        return None
    try:
        botocore = importlib.import_module("botocore.session")
    except ImportError:
        if named:
            raise UsageError(
                f"AWS_PROFILE={named} needs boto3, which is not installed: pip install boto3, or set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY"
            ) from None
        return None
    try:
        return AwsProfile(botocore.Session())
    except Exception as error:
        raise UsageError(f"AWS's files cannot be used: {error}") from error
