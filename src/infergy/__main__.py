"""``python -m infergy``: the command line without installation, as on a bare GPU node."""

from infergy.cli import main

if __name__ == "__main__":
    main()
