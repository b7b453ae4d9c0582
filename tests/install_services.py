"""Before the tests: install what they start and ask where we may, else say what is missing. Exits with 0.

The tests themselves decide whether a missing server is a skip or a failure.
"""

from __future__ import annotations

from services import (
    APT_PACKAGES,
    ServiceError,
    install_asyncapi_parser,
    install_if_root_on_debian,
    missing_services,
)


def main() -> None:
    try:
        if not install_asyncapi_parser():
            print("flowrun tests: Node.js not found: AsyncAPI's parser is not asked, or that fails if CI=true.")
    except ServiceError as error:
        print(f"flowrun tests: {error}")
    missing = missing_services()
    if not missing:
        return
    try:
        if install_if_root_on_debian(missing):
            missing = missing_services()
    except ServiceError as error:
        print(f"flowrun tests: {error}")
    if missing:
        packages = " ".join(APT_PACKAGES[service] for service in missing)
        print(
            f"flowrun tests: {' and '.join(missing)} not found: its tests are skipped, or fail if CI=true. "
            f"Install it (on Debian: apt-get install -y {packages}) "
            "or name a server in FLOWRUN_TEST_RABBITMQ or FLOWRUN_TEST_POSTGRES."
        )


if __name__ == "__main__":
    main()
