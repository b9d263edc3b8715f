"""`python -m jaxpgd`: the command line."""

from jaxpgd.experiment.cli import main

if __name__ == "__main__":
    main()
