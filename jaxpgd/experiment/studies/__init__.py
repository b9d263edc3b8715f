"""Studies: experiments of the papers and of users, as TOML files, run cell by cell from one command (`jaxpgd study`)."""
