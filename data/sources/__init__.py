"""Files and hub data sets become rows of one form, split between the stages."""
