"""The block-sparse runtime: products and whole recurrent layers that skip zero blocks."""
