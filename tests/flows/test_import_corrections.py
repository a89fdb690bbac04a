from flows.prefect_runs import import_corrections
from segcore.voc import CLASSES
from tasks.results.export import ExportJob, export_run
from tasks.review.corrections import CorrectionsJob
from tests.outputs import small_rows, write_run


def test_the_flow_makes_a_dataset_of_corrections_and_says_why_it_does_not(prefect_server, tmp_path):
    rows = small_rows(tmp_path / "photographs", num_images=6)
    output, masks, dataset = (str(tmp_path / name) for name in ("out", "png", "dataset"))
    write_run(output, "r", rows, class_names=list(CLASSES))
    export_run(ExportJob(output=output, destination=masks, to="png"))
    job = CorrectionsJob(output=output, corrections=masks, source="png", dataset=dataset)
    done = import_corrections(job, return_state=True)
    assert done.is_completed() and done.message.startswith("0 masks changed, 6 left as they were"), done.message
    missing = job.model_copy(update={"corrections": str(tmp_path / "none")})
    refused = import_corrections(missing, return_state=True)
    assert refused.is_failed() and "none" in refused.message and "Traceback" not in refused.message
