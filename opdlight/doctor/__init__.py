"""What to look at before hours are spent: do student, teachers, task, loss and machine fit together?"""
