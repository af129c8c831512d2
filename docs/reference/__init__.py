"""The API reference, docs/api/*.md, made of the docstrings and signatures of the sources and of `r2d2 --help`.

python -m docs.reference            write the pages (`make api`)
python -m docs.reference --check    say which pages are out of date; status 1 if any is
"""
