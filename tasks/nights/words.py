"""A night in words: for the page of its flow run, for a terminal."""

import base64

from tasks import storage
from tasks.evaluation.figures import compared_names, in_percent, mean_iou_over
from tasks.evaluation.record import evaluation_of, read_record
from tasks.nights.pictures import lost_picture
from tasks.nights.record import Night, last_night
from tasks.storage import Location


def markdown(output: Location, night: Night, dataset: str) -> str:
    """What a night found, for the page of the flow run."""
    lines = [f"# {'Alarm' if night.alarms else 'A quiet night'}", "", night.sentence, ""]
    for alarm in night.alarms:
        lines += [f"## {alarm.model}: {alarm.kind}", "", alarm.sentence, ""]
        if alarm.kind != "worse":
            continue
        lines += ["| figure | | before | now | change, points | interval |", "|---|---|---|---|---|---|"]
        for d in alarm.differences:
            before, now, low, high = (100 * d[name] for name in ("before", "now", "low", "high"))
            lines.append(
                f"| {d['figure']} | {d['stage']} | {before:.2f} | {now:.2f} | {now - before:+.2f} | "
                f"{low:+.2f} to {high:+.2f} |"
            )
        picture = lost_picture(output, night, alarm, dataset, jpeg=True, num_shown=3)
        if picture is not None:
            encoded = base64.b64encode(picture).decode()
            lines += ["", f"![The images that lost the most](data:image/jpeg;base64,{encoded})"]
        lines.append("")
    lines += ["| model | | mean IoU, % | 95 % interval | pixel accuracy, % |", "|---|---|---|---|---|"]
    over = compared_names(read_record(output, evaluation_id) for evaluation_id in night.evaluations)
    for model in night.models:
        if model.failure or model.refused:
            lines.append(f"| {model.model} | {'failed' if model.failure else 'refused'} | | | |")
        for evaluation_id in model.evaluations:
            record = read_record(output, evaluation_id)
            of = evaluation_of(record)
            for stage in of.stages:
                f = record["figures"][stage]
                m = mean_iou_over(f, over)
                lines.append(
                    f"| {of.model} | {of.protocol}, {stage} | {100 * m['value']:.2f} | "
                    f"{100 * m['low']:.2f} to {100 * m['high']:.2f} | {100 * f['pixel_accuracy']['value']:.2f} |"
                )
    lines += ["", *(f"- {m.model}: {m.training_images}" for m in night.models if m.training_images)]
    if night.report:
        lines += ["", f"Report with pictures: `{night.report}`"]
    return "\n".join(lines) + "\n"


def summary(output: str) -> list[str]:
    """Lines for a terminal about the latest night: figures of every model, where the report is. Empty without one."""
    place = storage.locate(output)
    night = last_night(place)
    if night is None:
        return []
    lines = [f"Night {night['run']}: {night['images']} images of {night['dataset']}. In brackets 95 % intervals."]
    evaluations = [evaluation_id for model in night["models"] for evaluation_id in model["evaluations"]]
    over = compared_names(read_record(place, evaluation_id) for evaluation_id in evaluations)
    for model in night["models"]:
        if model["failure"] or model["refused"]:
            lines.append(f"  {model['model']}: {'failed' if model['failure'] else 'refused'}")
        if model.get("training_images"):  # Nights of before have none
            lines.append(f"  {model['model']}: {model['training_images']}")
        for evaluation_id in model["evaluations"]:
            record = read_record(place, evaluation_id)
            of = evaluation_of(record)
            for stage in of.stages:
                figures = record["figures"][stage]
                told = f"mean IoU {in_percent(mean_iou_over(figures, over))}, "
                told += f"pixel accuracy {in_percent(figures['pixel_accuracy'])}"
                lines.append(f"  {of.model} [{of.shown_name}], {of.protocol}, {stage}: {told}")
            absent = [name for name in of.classes if name not in over]
            if absent:
                lines.append(f"    absent from truth and every prediction, so part of no mean: {', '.join(absent)}")
    if night["report"]:
        lines.append(f"Report: {night['report']}")
    return lines
