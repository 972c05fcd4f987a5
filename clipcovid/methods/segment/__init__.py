"""Train a segmentation network for lungs and infections.

    clipcovid segment --data data/phantom --target both --weights none
    clipcovid segment --data data/quex --target infection --arch unetplusplus --encoder efficientnet-b0
    clipcovid crossval segment --data data/seg100 --target lung --weights none

Only images that have the masks are used. Killed and run again, it goes on after the last epoch that it finished.
"""
