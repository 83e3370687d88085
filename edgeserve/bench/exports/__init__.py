"""A benchmark's report in the formats that there are. Adding one: a module here with
`export(report: BenchReport, console: Console) -> None`, whose name `edgeserve bench --format` takes.
"""
