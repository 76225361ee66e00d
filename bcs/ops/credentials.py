"""What commands show to a running service: a token, and over TLS a certificate; and which authorities they trust."""

from __future__ import annotations

import ssl

from bcs.config.loading import load_command_settings
from bcs.config.settings import InvalidSettings
from bcs.errors import os_reason


def authorization() -> dict[str, str]:
    """The headers with the token of the settings; empty if there is none.

    :raises InvalidSettings: the token can't be read.
    """
    token = load_command_settings().token
    return {} if token is None else {"Authorization": f"Bearer {token.get_secret_value()}"}


def tls_context() -> ssl.SSLContext:
    """The TLS of the settings, for a request to `https`.

    :raises InvalidSettings: a file can't be used.
    """
    settings = load_command_settings()
    context = ssl.create_default_context()
    variable = "BCS_COMMAND_CAFILE"
    try:
        if settings.command_cafile is not None:
            context = ssl.create_default_context(cafile=settings.command_cafile)
        variable = "BCS_COMMAND_CERTFILE"
        if settings.command_certfile is not None:
            # Without a function, OpenSSL would ask for a password at the terminal.
            context.load_cert_chain(settings.command_certfile, settings.command_keyfile, lambda: "")
    except ssl.SSLError as error:
        reason = (error.reason or "unreadable").replace("_", " ").lower()
        raise InvalidSettings(((variable, f"can't be used: {reason}"),)) from None
    except OSError as error:
        raise InvalidSettings(((variable, f"can't be read: {os_reason(error)}"),)) from None
    return context
