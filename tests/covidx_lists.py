"""A small COVIDx: its lists, and the images that they name."""

from pictures import pictures

LISTS = {
    "train_COVIDx9A.txt": "3 ARDSSevere.png normal cohen\nCOVID-1 a b.jpg COVID-19 sirm\n\nx-7 1.png pneumonia rsna\n",
    "test_COVIDx9A.txt": "y-8 1.png COVID-19 ricord\n",
}


IMAGES = ["train/ARDSSevere.png", "train/a b.jpg", "train/1.png", "test/1.png"]


ROWS = [
    ("test/1.png", "COVID-19", "y-8", "ricord", "test"),
    ("train/1.png", "pneumonia", "x-7", "rsna", "train"),
    ("train/ARDSSevere.png", "normal", "3", "cohen", "train"),
    ("train/a b.jpg", "COVID-19", "COVID-1", "sirm", "train"),
]


COLUMNS = ("image_id", "label", "patient_id", "source", "split")


def covidx(root, lists=LISTS):
    pictures(root, *IMAGES)
    for name, text in lists.items():
        (root / name).write_text(text)
    return root
