"""Sources made of data as other libraries hold them: loaders, data sets, frames, pictures, tars."""
