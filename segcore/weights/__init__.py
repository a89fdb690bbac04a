"""Published weights of others, read into our models: Caffe, torchvision, kazuto1011/deeplab-pytorch, hszhao/semseg."""
