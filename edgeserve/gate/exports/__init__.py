"""A gate's report in the formats that there are. Adding one: a module here with
`export(report: GateReport, console: Console) -> None`, whose name `edgeserve gate --format` takes.
"""
