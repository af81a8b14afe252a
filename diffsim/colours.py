"""The colours of lines in pictures, in the order in which they are used."""

# Okabe and Ito, "Color Universal Design" (2008), without the yellow: apart for every kind of colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
