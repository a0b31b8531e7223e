"""What is of Narang, Undersander and Diamos (2017) alone: their table beside ours, their questions."""
