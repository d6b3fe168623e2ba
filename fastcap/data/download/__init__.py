"""Fetching data sets: resumable transfers, archives, COCO's layout and Karpathy's splits."""
