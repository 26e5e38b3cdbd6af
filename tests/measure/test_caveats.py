from agentrft.measure.report import ReportInput, build_report


def test_a_caveat_of_the_run_stands_first_among_the_warnings():
    given = ReportInput(project="desk", stages=(), pass_threshold=1.0, caveats=("Mind this.",))
    assert build_report(given).summary.warnings[0] == "Mind this."
